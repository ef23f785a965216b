"""Progress through clips, outside of training, as a log has it."""

import re

from train import progress
from train.loader import Bad


def test_a_log_has_lines_with_rate_time_left_and_failures(monkeypatch, capsys):
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    items = ["a", Bad("key", "shard", "damaged"), "b", "c"]
    assert list(progress.shown(items, "clips", 4)) == items
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert re.fullmatch(r"clips: 1/4  \S+/s  0:00:00 left", lines[0])
    assert re.fullmatch(r"clips: 3/4  \S+/s  1 failed  0:00:00 left", lines[2])


def test_what_is_quick_says_nothing_in_a_log(capsys):
    assert list(progress.shown(range(3), "clips", 3)) == [0, 1, 2]
    assert capsys.readouterr().err == ""
