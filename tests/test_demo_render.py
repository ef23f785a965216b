"""Tests of the demo's rendered data set: only motion may tell its classes apart, and motion must."""

import csv
import json
import re
import subprocess
from dataclasses import astuple, replace
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from tests.demo import render as module
from tests.demo.render import (
    CLASSES,
    OBJECT_COUNTS,
    RANGES,
    State,
    Video,
    frames,
    plan_videos,
    render,
    render_all,
    state,
    write_manifest,
)

Floats = npt.NDArray[np.floating]


def small(video: Video, frame_rate: int = 24) -> Video:
    """The same objects in one second of 128 x 96 pixels, which is quick to draw."""
    return replace(video, width=128, height=96, frame_rate=Fraction(frame_rate), duration_seconds=1)


def probe(path: Path) -> tuple[dict[str, str], dict[str, str], float]:
    """The entries of the video and audio stream, and the file's duration in seconds."""
    command = [
        "ffprobe",
        "-v",
        "error",
        "-count_packets",
        "-show_streams",
        "-show_format",
        "-of",
        "json",
        str(path.resolve()),
    ]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=30).stdout)
    streams = {stream["codec_type"]: stream for stream in found["streams"]}
    return streams["video"], streams["audio"], float(found["format"]["duration"])


def decode(path: Path) -> npt.NDArray[np.uint8]:
    """All frames of a file: [T, H, W, 3] uint8 RGB."""
    width, height = (int(probe(path)[0][key]) for key in ("width", "height"))
    command = ["ffmpeg", "-v", "error", "-i", str(path.resolve()), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, check=True, capture_output=True, timeout=30).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


def test_plan_is_reproducible_and_alike_for_every_class() -> None:
    videos = plan_videos(10, 4)
    assert videos == plan_videos(10, 4)
    assert {video.seed for video in videos}.isdisjoint(video.seed for video in plan_videos(10, 4, seed=1))
    assert [video.split for video in videos] == ["train"] * 100 + ["val"] * 40
    forms = [
        [(v.width, v.height, v.frame_rate, v.duration_seconds) for v in videos if v.label == label] for label in CLASSES
    ]
    assert all(form == forms[0] for form in forms)
    assert len(set(forms[0])) > 5


def test_ids_look_like_youtube_ids_and_name_one_plan_each() -> None:
    videos = plan_videos(10, 4) + plan_videos(10, 4, seed=1) + plan_videos(10, 4, clip_seconds=3)
    ids = {video.youtube_id for video in videos}
    assert len(ids) == len(videos)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{11}", name) for name in ids)
    assert 0.05 < np.mean([name.startswith("-") for name in ids]) < 0.2


def test_clip_is_the_end_of_its_file() -> None:
    for video in plan_videos(2, 2, clip_seconds=3):
        assert 0 < video.start_seconds < video.end_seconds == video.duration_seconds
        assert video.end_seconds - video.start_seconds == 3
        assert video.duration_seconds <= video.frame_count / video.frame_rate < video.duration_seconds + Fraction(1, 20)


def test_frames_are_reproducible() -> None:
    video = small(plan_videos(1, 0)[4])
    once, again = np.stack(list(frames(video))), np.stack(list(frames(video)))
    assert once.shape == (24, 96, 128, 3)
    assert once.dtype == np.uint8
    np.testing.assert_array_equal(once, again)
    assert once.std() > 20  # there is something to see


@pytest.mark.parametrize("pair", range(5))
def test_classes_of_a_pair_are_time_reversals(pair: int) -> None:
    video = small(plan_videos(1, 0)[pair])
    first, second = (np.stack(list(frames(replace(video, label=label)))) for label in CLASSES[2 * pair :][:2])
    np.testing.assert_array_equal(first, second[::-1])
    assert np.abs(np.diff(first.astype(int), axis=0)).mean() > 1  # and not because nothing moves


def test_background_moves_alike_in_every_class_but_for_the_reversal() -> None:
    for video in plan_videos(5, 5)[:: len(CLASSES)]:
        middle = (video.frame_count - 1) / (2 * video.frame_rate)
        for number, label in enumerate(CLASSES):
            elapsed = Fraction(-1 if number % 2 else 1, 3)
            now = state(replace(video, label=label), middle + elapsed)
            expected = state(replace(video, label=CLASSES[0]), middle + Fraction(1, 3))
            np.testing.assert_array_equal(now.background, expected.background)


def test_only_the_variable_of_the_class_changes_and_within_the_pace_of_its_split() -> None:
    moments = []
    for video in plan_videos(20, 20):
        before, after = state(video, 1.0), state(video, 1.0 + 1e-3)
        rates = (after.phases - before.phases + 0.5) % 1 - 0.5
        pair = CLASSES.index(video.label) // 2
        assert np.all(np.delete(rates, pair, axis=1) == 0)
        assert np.all(rates[:, pair] != 0)
        torus = np.array([video.width, video.height]) + 2 * module.MARGIN * min(video.width, video.height)
        move = abs(module.MOVE_RATE) * min(video.width, video.height) / torus
        sweep = (*move, module.TURN_RATE / 360, module.SCALE_RATE, module.GAP_RATE)[pair]
        moments += [(video.split, pace) for pace in np.abs(rates[:, pair]) / sweep / 1e-3]
    for split, ranges in RANGES.items():
        paces = [pace for name, pace in moments if name == split]
        assert ranges.pace[0] - 1e-6 < min(paces) < max(paces) < ranges.pace[1] + 1e-6


def test_ranges_of_the_splits_are_disjoint() -> None:
    train, val = RANGES["train"], RANGES["val"]
    assert not set(train.shapes) & set(val.shapes)
    for first, second in zip(astuple(train)[1:], astuple(val)[1:], strict=True):
        low, high = sorted((first, second))
        assert low[0] < low[1] < high[0] < high[1]


def random_states(clips: int) -> dict[str, list[State]]:
    """For every class, the states of `clips` training videos, each at one random time of its file."""
    source = np.random.default_rng(5)
    found: dict[str, list[State]] = {label: [] for label in CLASSES}
    for video in plan_videos(clips, 0):
        found[video.label].append(state(video, source.uniform(0, video.duration_seconds)))
    return found


def test_states_at_an_instant_have_one_distribution_for_all_classes() -> None:
    """Every variable is uniform and every two are independent, whatever the class.

    About 450 objects a class. A Kolmogorov-Smirnov distance times sqrt(n) beyond 2.2 has probability 1.3e-4,
    and there are 70 of them; a chi-square of 15 degrees of freedom beyond 50 has 1.2e-5, and there are 100.
    The seeds are fixed, so a pass stays a pass.
    """
    for label, states in random_states(150).items():
        phases = np.concatenate([now.phases for now in states])
        scroll = np.stack([now.background for now in states])
        for name, values in [
            *zip(["x", "y", "angle", "radius", "gap"], phases.T, strict=True),
            *zip("uv", scroll.T, strict=True),
        ]:
            ranks = np.arange(len(values) + 1) / len(values)
            ordered = np.sort(values)
            distance = max(np.max(ranks[1:] - ordered), np.max(ordered - ranks[:-1]))
            assert distance * np.sqrt(len(values)) < 2.2, (label, name)
        for a in range(5):
            for b in range(a):
                cells = np.histogram2d(phases[:, a], phases[:, b], 4, ((0, 1), (0, 1)))[0]
                expected = len(phases) / 16
                assert ((cells - expected) ** 2 / expected).sum() < 50, (label, a, b)


def test_pictures_hold_as_many_objects_in_every_class() -> None:
    """Counts follow their stated mix; their mean over 150 clips stays within four standard errors of it."""
    spread = np.std(OBJECT_COUNTS) / np.sqrt(150)
    for states in random_states(150).values():
        counts = [len(now.radii) for now in states]
        assert set(counts) == set(OBJECT_COUNTS)
        assert abs(np.mean(counts) - np.mean(OBJECT_COUNTS)) < 4 * spread


def visible_points(now: State) -> tuple[Floats, Floats]:
    """Points of the last object, which nothing covers: [90, 2] pixels, and the side -1 or 1 of each, [90].

    All of them lie inside both halves of every kind of shape.
    """
    sides, across, down = (
        grid.ravel()
        for grid in np.meshgrid((-1.0, 1.0), np.linspace(0.08, 0.32, 5), np.linspace(-0.3, 0.3, 9), indexing="ij")
    )
    angle, radius, gap = now.angles[-1], now.radii[-1], now.gaps[-1]
    local = np.stack([sides * (across * radius + gap / 2), down * radius])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return (turn @ local).T + now.centres[-1], sides


def class_measure(label: str, now: State, points: Floats, sides: Floats, moves: Floats) -> float:
    """The mean of the motion that label's pair is about, over points of the last object that make `moves`.

    All arrays [90, 2] or [90], in pixels; positive when the first class of the pair happens.
    """
    arms = points - now.centres[-1]
    axis = np.array([np.cos(now.angles[-1]), np.sin(now.angles[-1])])
    by_pair = (
        -moves[:, 0],
        -moves[:, 1],
        arms[:, 0] * moves[:, 1] - arms[:, 1] * moves[:, 0],
        (arms * moves).sum(axis=1),
        sides * (moves @ axis),
    )
    return float(by_pair[CLASSES.index(label) // 2].mean())


def measured_and_true(video: Video) -> Floats:
    """Optical flow at the last object, for all frames that show it whole, without a wrap to the next one.

    Returns [M, 3]: the class's measure by the flow and by the states, and the flow's median error in pixels.
    """
    flow_of = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    pictures = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames(video)]
    rows = []
    for index in range(0, len(pictures) - 1, 2):
        now, after = (state(video, i / video.frame_rate) for i in (index, index + 1))
        points, sides = visible_points(now)
        inside = np.all((points > 4) & (points < np.array([video.width, video.height]) - 5))
        if not inside or np.any(np.abs(after.phases - now.phases) > 0.5):
            continue
        x, y = np.rint(points).astype(int).T
        seen = np.asarray(flow_of.calc(pictures[index], pictures[index + 1], np.empty(0)))[y, x]
        truth = visible_points(after)[0] - points
        measured, true = (class_measure(video.label, now, points, sides, moves) for moves in (seen, truth))
        rows.append((measured, true, np.median(np.linalg.norm(seen - truth, axis=1))))
    return np.array(rows).reshape(-1, 3)


@pytest.mark.parametrize("label", CLASSES)
def test_flow_shows_the_motion_of_the_class(label: str) -> None:
    videos = [video for video in plan_videos(3, 3) if video.label == label]
    sized = [replace(v, width=320, height=240, frame_rate=Fraction(25), duration_seconds=1) for v in videos]
    measured, true, errors = np.concatenate([measured_and_true(video) for video in sized]).T
    sign = -1 if CLASSES.index(label) % 2 else 1
    assert len(measured) >= 10
    assert np.all(sign * true > 0)
    assert np.mean(sign * measured > 0) > 0.9
    assert np.median(errors) < 0.4


def appearance(video: Video) -> Floats:
    """What one frame, the file's first, looks like: coarse layout, colour and gradient histograms, [~200]."""
    frame = next(frames(video)).astype(np.float32) / 256
    layout = cv2.resize(frame, (8, 6), interpolation=cv2.INTER_AREA).ravel()
    colours = np.histogramdd(frame.reshape(-1, 3), 4, ((0, 1),) * 3)[0].ravel() / frame[..., 0].size
    down, right = np.gradient(frame.mean(axis=2))
    angles, strength = np.arctan2(down, right).ravel(), np.hypot(down, right).ravel()
    edges = np.histogram2d(angles, strength, (8, 4), ((-np.pi, np.pi), (0, 0.2)))[0].ravel() / angles.size
    return np.concatenate([layout, 10 * colours, 10 * edges])


def linear_accuracy(
    train: Floats, train_labels: npt.NDArray[np.intp], test: Floats, test_labels: npt.NDArray[np.intp]
) -> float:
    """Share of test rows that ridge regression onto the labels, one column each, gets right."""
    middle, spread = train.mean(axis=0), train.std(axis=0) + 1e-3
    inputs, targets = (train - middle) / spread, np.eye(train_labels.max() + 1)[train_labels]
    weights = np.linalg.solve(inputs.T @ inputs + 100 * np.eye(inputs.shape[1]), inputs.T @ (targets - targets.mean(0)))
    return float(np.mean(np.argmax((test - middle) / spread @ weights, axis=1) == test_labels))


@pytest.mark.slow
def test_single_frames_do_not_tell_the_classes_apart() -> None:
    """160 held-out frames: chance is 0.1 with a standard error of 0.024, and the bound lies four above it.

    The first frame of a file is the one furthest from its middle, around which the two classes of a pair
    mirror each other. That the same features do tell the splits apart shows that they see something.
    """
    videos = plan_videos(16, 16, seed=3)
    looks = np.stack([appearance(small(video)) for video in videos])
    labels = np.array([CLASSES.index(video.label) for video in videos])
    held_out = np.array([int(video.split == "val") for video in videos])
    train, val = held_out == 0, held_out == 1
    assert linear_accuracy(looks[train], labels[train], looks[val], labels[val]) < 0.1 + 4 * 0.0237
    assert linear_accuracy(looks[train], labels[train] % 2, looks[val], labels[val] % 2) < 0.5 + 4 * 0.0395
    assert linear_accuracy(looks[::2], held_out[::2], looks[1::2], held_out[1::2]) > 0.7


def test_files_are_as_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    video = next(video for video in plan_videos(10, 0) if video.youtube_id.startswith("-"))
    video = replace(video, width=426, height=240, frame_rate=Fraction(30000, 1001), duration_seconds=1)
    path = render(video, Path())
    assert [found.name for found in tmp_path.iterdir()] == [f"{video.youtube_id}.mp4"]
    picture, sound, duration = probe(path)
    assert (int(picture["width"]), int(picture["height"])) == (426, 240)
    assert picture["codec_name"] == "h264"
    assert (picture["pix_fmt"], sound["codec_name"]) == ("yuv420p", "aac")
    assert Fraction(picture["avg_frame_rate"]) == video.frame_rate
    assert int(picture["nb_read_packets"]) == video.frame_count == 30
    assert duration == pytest.approx(1.001, abs=0.05)
    assert float(sound["duration"]) == pytest.approx(1.001, abs=0.05)
    # Right colours at the right times: the codec's own loss is about 5 grey levels, and a frame's shift doubles it.
    drawn, decoded = np.stack(list(frames(video))).astype(int), decode(path).astype(int)
    assert (loss := np.abs(decoded - drawn).mean()) < 8
    assert np.abs(decoded[1:] - drawn[:-1]).mean() > 1.5 * loss


def test_render_all_skips_what_is_there_and_reports_all(tmp_path: Path) -> None:
    videos = [small(video) for video in plan_videos(1, 0)[:3]]
    found = tmp_path / f"{videos[1].youtube_id}.mp4"
    found.write_bytes(b"kept")
    done: list[tuple[Video, Path]] = []
    paths = render_all(videos, tmp_path, workers=2, on_done=lambda video, path: done.append((video, path)))
    assert paths == [tmp_path / f"{video.youtube_id}.mp4" for video in videos]
    assert sorted(done, key=str) == sorted(zip(videos, paths, strict=True), key=str)
    assert found.read_bytes() == b"kept"
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    assert int(probe(paths[2])[0]["nb_read_packets"]) == 24


@pytest.mark.parametrize(("script", "message"), [("echo no room >&2; exit 3", "3: no room"), ("exec sleep 60", "-9")])
def test_failing_or_stuck_encoder_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    encoder = tmp_path / "bin" / "ffmpeg"
    encoder.parent.mkdir()
    encoder.write_text(f"#!/bin/sh\n{script}\n")
    encoder.chmod(0o755)
    monkeypatch.setenv("PATH", str(encoder.parent), prepend=":")
    monkeypatch.setattr(module, "_DEADLINE_SECONDS", 0.5 if "sleep" in script else 60)
    with pytest.raises(RuntimeError, match=message):
        render(small(plan_videos(1, 0)[0]), tmp_path / "videos")
    assert list((tmp_path / "videos").iterdir()) == []


def test_manifest_is_in_kinetics_format(tmp_path: Path) -> None:
    videos = plan_videos(2, 1)
    train, val, classes = write_manifest(videos, tmp_path / "lists")
    assert (train.name, val.name, classes.name) == ("train.csv", "val.csv", "classes.txt")
    assert tuple(classes.read_text().splitlines()) == CLASSES
    for path, count in ((train, 20), (val, 10)):
        assert path.read_text().startswith("label,youtube_id,time_start,time_end,split\n")
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        planned = [video for video in videos if video.split == path.stem]
        assert len(rows) == len(planned) == count
        for row, video in zip(rows, planned, strict=True):
            assert list(row.values()) == [video.label, video.youtube_id, "1", "3", video.split]
