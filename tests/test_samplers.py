"""Which pictures each architecture sees of a clip, in training and in a test."""

import pytest

from train.samplers import RandomWindow, whole_clip_windows, window_of

BOTH = ("rgb", "flow")


def lists(pictures):
    return {stream: list(numbers) for stream, numbers in pictures.items()}


@pytest.mark.parametrize(
    ("architecture", "streams", "start", "wanted"),
    [
        ("lstm", ("rgb",), 7, {"rgb": list(range(7, 132, 5))}),
        ("c3d", ("rgb",), 7, {"rgb": list(range(7, 23))}),
        ("two-stream", BOTH, 7, {"rgb": [7], "flow": list(range(7, 17))}),
        ("two-stream", ("flow",), 7, {"flow": list(range(7, 17))}),
        ("fused", BOTH, 7, {"rgb": [7, 17, 27, 37, 47], "flow": list(range(7, 57))}),
        ("i3d", ("flow",), 7, {"flow": list(range(7, 71))}),
    ],
)
def test_windows_of_the_paper(architecture, streams, start, wanted):
    """Flow i is the motion from frame i on: the flows of a window begin at its first frame."""
    assert lists(window_of(architecture, streams).at(start, 249)) == wanted


@pytest.mark.parametrize("architecture", ["lstm", "c3d", "two-stream", "fused", "i3d"])
def test_random_starts_reach_both_ends(architecture):
    window = window_of(architecture, ("rgb",))
    sampler = RandomWindow(window)
    starts = {next(iter(sampler(window.frames + 3, draw / 100)["rgb"])) for draw in range(100)}
    assert starts == {0, 1, 2, 3}
    assert max(sampler(window.frames + 3, 0.999)["rgb"]) < window.frames + 3
    assert next(iter(sampler(window.frames, 0.999)["rgb"])) == 0


def test_short_clips_start_over_and_short_windows_are_repeated():
    def pictures(frames, clip_frames, draw):
        return list(RandomWindow(window_of("i3d", ("rgb",), frames))(clip_frames, draw)["rgb"])

    assert pictures(9, 4, 0.9) == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    assert pictures(2, 10, 0.999) == [8, 9, 8, 9, 8, 9, 8, 9, 8]
    assert pictures(12, 20, 0.5) == list(range(4, 16))
    assert lists(window_of("two-stream", BOTH).at(0, 4)) == {"rgb": [0], "flow": [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]}
    assert lists(window_of("lstm", ("rgb",)).at(0, 7))["rgb"][:5] == [0, 5, 3, 1, 6]


@pytest.mark.parametrize(
    ("architecture", "streams", "rgb", "flow"),
    [
        ("lstm", ("rgb",), 50, 0),
        ("c3d", ("rgb",), 240, 0),
        ("two-stream", BOTH, 25, 250),
        ("fused", BOTH, 25, 250),
        ("i3d", ("rgb",), 250, 0),
    ],
)
def test_a_clip_of_ten_seconds_is_tested_as_in_table_1(architecture, streams, rgb, flow):
    """250 frames, and so 249 flows: the last window of both moves back by one."""
    windows = whole_clip_windows(architecture, streams, 249 if "flow" in streams else 250)
    assert sum(len(window.get("rgb", ())) for window in windows) == rgb
    assert sum(len(window.get("flow", ())) for window in windows) == flow
    assert max(number for window in windows for some in window.values() for number in some) < 250
    if "flow" in streams:
        assert windows[-1]["flow"][-1] == 248
        assert windows[-1]["rgb"][0] == windows[-1]["flow"][0]


def test_clips_of_other_lengths():
    assert [list(w["rgb"]) for w in whole_clip_windows("c3d", ("rgb",), 40)] == [list(range(16)), list(range(16, 32))]
    assert lists(whole_clip_windows("c3d", ("rgb",), 5)[0]) == {"rgb": [n % 5 for n in range(16)]}
    assert lists(whole_clip_windows("i3d", ("flow",), 5)[0]) == {"flow": [n % 5 for n in range(9)]}
    assert lists(whole_clip_windows("lstm", ("rgb",), 12)[0]) == {"rgb": [0, 5, 10]}
    assert [list(w["rgb"]) for w in whole_clip_windows("two-stream", ("rgb",), 30)] == [[0], [10], [20]]
    assert len(whole_clip_windows("fused", BOTH, 99)) == 2
