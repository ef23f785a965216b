"""What a run says of itself while it works."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline import progress
from pipeline.cli import main
from pipeline.progress import Meter, count, count_shards, working

PROGRAM = Path(sys.executable).with_name("kinetics-prep")


class Clock:
    """Seconds that the test lets pass."""

    now = 1000.0

    def __call__(self):
        return self.now

    def wait(self, seconds, meter):
        for _ in range(int(seconds)):
            self.now += 1
            meter.look()


def test_time_left_is_that_of_the_last_minutes():
    clock = Clock()
    meter = Meter(1000, clock=clock)
    assert meter.seconds_left is None
    for _ in range(100):  # slow at first: a clip in ten seconds
        clock.wait(10, meter)
        count(None)
    assert meter.seconds_left == pytest.approx(9000, rel=0.05)
    for _ in range(600):  # then one a second
        clock.wait(1, meter)
        count("corrupt")
    assert meter.clips_per_second == pytest.approx(1, rel=0.02)
    assert meter.seconds_left == pytest.approx(300, rel=0.02)
    assert meter.outcomes() == {"ok": 100, "corrupt": 600}
    assert re.fullmatch(r"700/1000 clips  1\S* clips/s  0:0[45]:.. left  failed 600 \(corrupt 600\)", meter.summary())


def test_clips_that_were_found_finished_make_no_rate():
    clock = Clock()
    meter = Meter(100, finished=90, clock=clock)
    clock.wait(10, meter)
    for _ in range(30):
        count(None, found=True)
    assert meter.seconds_left is None
    for _ in range(5):
        count(None)
    assert meter.seconds_left == pytest.approx(10)
    for _ in range(60):
        count(None, found=True)
    assert meter.summary() == "95/100 clips (90 found finished)  0.5 clips/s  0:00:10 left  failed 0"
    for _ in range(5):
        count(None)
    assert meter.seconds_left == 0


def test_stages_have_rows():
    clock = Clock()
    meter = Meter(3, clock=clock)
    clock.wait(4, meter)
    with working("fetch"):
        assert meter.row("fetch") == (0, 1, None)
        assert "fetch 0 +1 in work" in meter.line()
    with pytest.raises(ValueError), working("encode"):
        raise ValueError
    assert meter.row("fetch") == (1, 0, 0.25)
    assert meter.row("encode") == (0, 0, None)
    count_shards(7)
    with working("shards"):
        pass
    assert meter.line().endswith("|  shards 1/7 +0 in work 0.25/s")


@pytest.fixture
def videos(tmp_path, make_video):
    for name in ("a", "b", "c"):
        (tmp_path / "in" / "walk").mkdir(parents=True, exist_ok=True)
        make_video(tmp_path / "in" / "walk" / f"{name}.mp4", seconds=0.5)
    (tmp_path / "in" / "walk" / "c.mp4").write_bytes(b"no video")
    return tmp_path / "in"


def test_a_run_counts_its_stages_in_plain_lines(tmp_path, videos, monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.05)
    run = ("run", "--manifest", str(videos), "--output", str(tmp_path / "out"), "--short-side", "32")
    lines = [line for line in CliRunner().invoke(main, run).stderr.splitlines() if " clips/s " in line]
    assert len(lines) > 1
    assert re.fullmatch(
        r"3/3 clips  \S+ clips/s  0:00:00 left  failed 1 \(not-a-video 1\)"
        r"  \|  fetch 3 \+0 in work \S+/s  \|  encode 2 \+0 in work \S+/s  \|  flow 2 \+0 in work \S+/s"
        r"  \|  shards 1/1 \+0 in work \S+/s",
        lines[-1],
    )
    (tmp_path / "out" / "index.json").unlink()
    for folder in ("snapshots", "ledger"):
        for path in (tmp_path / "out" / folder).rglob("*.*"):
            path.unlink()
    said = CliRunner().invoke(main, run).stderr
    assert "3/3 clips (2 found finished)" in said
    assert "|  fetch 1 +0 in work" in said


def test_on_a_terminal_there_is_a_table(tmp_path, videos):
    ours, theirs = pty.openpty()
    command = [PROGRAM, "run", "--manifest", videos, "--output", tmp_path / "out", "--short-side", "32"]
    terminal = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, stdin=theirs, env=terminal)
    os.close(theirs)
    said = b""
    try:
        while block := os.read(ours, 1 << 16):
            said += block
    except OSError:  # how a terminal ends
        pass
    assert run.wait(60) == 0
    last = said.decode().rsplit("stage", 1)[1]
    assert re.search(r"fetch +3 +0 ", last)
    assert re.search(r"encode +2 +0 ", last)
    assert re.search(r"shards +1/1 +0 ", last)
    assert "failed 1 (not-a-video 1)" in last
