"""i3d-predict on files, folders and URLs: all architectures piece by piece, classes over time, pages and videos."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from networks import random_network

from flow import encode_flow
from manifests.classes import ClassList
from manifests.sample import RgbCoding
from model import I3D, save_run
from pipeline.video import VideoError, encode_rgb
from train.decode import whole_clip
from train.evaluate import Streams, network_logits
from train.over_time import STEP_FRAMES, OverTime, classes_over_time, stretches
from train.predict_command import predict_command
from train.videos import StoredStream, ahead, find_videos
from train.watch import Steps, clip_logits, watch

CPU = torch.device("cpu")
SIDE = 64
SMALL = ("--crop", 32, "--short-side", 32)
BOTH = ("rgb", "flow")


def predict(*arguments, status=0):
    result = CliRunner().invoke(predict_command, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output + repr(result.exception)
    return result


@pytest.fixture(scope="module")
def stored(tmp_path_factory, make_video):
    """14 s and their flow in the stored form."""
    folder = tmp_path_factory.mktemp("stored")
    video = make_video(folder / "long.mp4", size=f"{SIDE}x{SIDE}", seconds=14)
    rgb = encode_rgb(video, folder / "rgb.mp4", RgbCoding(short_side=SIDE))
    flow = np.random.default_rng(0).uniform(-3, 3, (rgb.frames - 1, SIDE, SIDE, 2)).astype(np.float32)
    return {"rgb": StoredStream(rgb.content, 350), "flow": StoredStream(encode_flow(flow), 349)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An untrained I3D that sees RGB; one of its classes is a piece of HTML."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("run") / "rgb.pt"
    save_run(path, I3D(3, 3), ["jump", "<b>run</b>", "stand"])
    return path


@pytest.mark.parametrize(("architecture", "streams"), [("lstm", ("flow",)), ("two-stream", BOTH), ("fused", BOTH)])
def test_a_video_piece_by_piece_equals_the_whole(stored, architecture, streams):
    network = random_network(architecture, streams).eval()
    steps, features = watch(network, stored, SIDE, CPU)
    assert features is None
    pixels = {s: torch.from_numpy(whole_clip(stored[s].content, s, SIDE)) for s in streams}
    wanted = network_logits(pixels, network, CPU)
    torch.testing.assert_close(clip_logits(network, steps.values[None], CPU)[0], wanted, atol=1e-4, rtol=1e-4)
    places = {
        "lstm": np.arange(0, 349, 5) + 0.5,
        "two-stream": [*np.arange(5, 345, 10), 344],  # the last window begins a frame earlier
        "fused": [*np.arange(25, 325, 50), 324],
    }
    np.testing.assert_allclose(steps.frames, places[architecture])


def test_pictures_of_a_long_video_are_not_all_in_memory(stored):
    network = random_network("two-stream", BOTH).eval()
    tracemalloc.start()
    watch(network, stored, SIDE, CPU)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < sum(whole_clip(stored[s].content, s, SIDE).nbytes for s in BOTH) / 3


def over_time(networks, steps, frames, window_seconds, start_seconds=0.0):
    classes = ClassList("test", ("jump", "run", "stand"))
    return classes_over_time(steps, Streams(networks, {}, classes, CPU), frames, window_seconds, start_seconds)


def test_windows_slide_over_the_steps_of_networks(stored):
    """Every window against a sum of its own; I3D's steps are dense, Two-Stream's windows wider than a window here."""
    generator = torch.Generator().manual_seed(0)
    networks = {"rgb": random_network("i3d", ("rgb",)).eval(), "flow": random_network("c3d", ("flow",)).eval()}
    places = {"rgb": np.arange(9.0, 190, 8), "flow": np.arange(8.0, 200, 16)}
    steps = {s: Steps(some, torch.randn(len(some), 3, generator=generator) * 3) for s, some in places.items()}
    for window_seconds in (0.4, 2.56):
        found = over_time(networks, steps, 200, window_seconds, 5.0)
        np.testing.assert_allclose(found.seconds, 5 + np.arange(0, 200, STEP_FRAMES) / 25)
        for centre, probabilities in zip(np.arange(0, 200, STEP_FRAMES), found.probabilities, strict=True):
            logits = torch.zeros(3)
            for some in steps.values():
                inside = [n for n, f in enumerate(some.frames) if abs(2 * (f - centre) + 0.01) < window_seconds * 25]
                inside = inside or [int(np.abs(some.frames - centre).argmin())]
                logits += some.values[inside].mean(0)
            np.testing.assert_allclose(probabilities, logits.softmax(0), atol=1e-5)


def test_an_lstm_begins_anew_with_each_window(stored):
    network = random_network("lstm", ("flow",)).eval()
    steps, _ = watch(network, stored, SIDE, CPU)
    found = over_time({"flow": network}, {"flow": steps}, 100, 1.0)
    inside = [n for n, frame in enumerate(steps.frames) if 40 - 12.5 <= frame < 40 + 12.5]
    with torch.inference_mode():
        wanted = network.classify(steps.values[None, inside])[0].softmax(0)
    np.testing.assert_allclose(found.probabilities[5], wanted, atol=1e-5)


def test_stretches_of_one_class():
    shares = np.array([[0.6, 0.4], [0.8, 0.2], [0.1, 0.9]], np.float32)
    found = stretches(OverTime(np.array([1.0, 1.32, 1.64]), shares, 2.0), 1.8)
    assert [(s.start_seconds, s.end_seconds, s.class_index) for s in found] == [(1.0, 1.64, 0), (1.64, 1.8, 1)]
    assert [s.probability for s in found] == pytest.approx([0.7, 0.9])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_video):
    """Videos at several depths, with names that a stranger may give, and what is none."""
    root = tmp_path_factory.mktemp("folder")
    strange = root / "a" / os.fsdecode(b"-i \x1b[31m\xff\n'$(id)'.MP4")
    strange.parent.mkdir()
    for number, path in enumerate((strange, root / "z.mkv")):
        make_video(root / "video.mp4", "-vf", f"rotate={number}", size="48x32", seconds=0.6)
        (root / "video.mp4").rename(path)
    (root / "b.mp4").write_text("<html>no video")
    (root / "empty.avi").touch()
    (root / "notes.txt").write_text("no video's name")
    (root / ".hidden.mp4").write_text("hidden")
    (root / "a" / "circle").symlink_to(root)
    os.mkfifo(root / "pipe.mp4")
    return root


def test_a_folder_line_by_line(folder, checkpoint):
    result = predict(folder, "--rgb", checkpoint, *SMALL, "--json", "--over-time", 0.5, status=1)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    strange, *_, last = find_videos([str(folder)])
    names = [strange, folder / "b.mp4", folder / "empty.avi", folder / "z.mkv"]
    assert [line["video"] for line in lines] == [str(name) for name in names]
    assert [line.get("reason") for line in lines] == [None, "not-a-video", "empty-file", None]
    assert strange.name.startswith("-i ")
    alone = json.loads(predict(last, "--rgb", checkpoint, *SMALL, "--json", "--over-time", 0.5).stdout)
    assert alone["top"][0].pop("probability") == pytest.approx(lines[-1]["top"][0].pop("probability"), abs=1e-5)
    assert alone["top"][0] == lines[-1]["top"][0]
    assert alone["over_time"]["seconds"] == [0, 0.32]
    of_classes = [place["probabilities"] for place in alone["over_time"]["classes"]]
    assert np.sum(of_classes, axis=0) == pytest.approx([1, 1], abs=1e-5)


def test_a_folder_for_people(folder, checkpoint):
    result = predict(folder, "--rgb", checkpoint, *SMALL, "--top", 1, status=1)
    assert "\x1b" not in result.output
    assert len(result.stdout.splitlines()) == 4  # two names, two classes
    assert f"Error: {folder}/b.mp4: not-a-video: " in result.stderr


def test_names_of_nothing(tmp_path, checkpoint):
    rgb = ("--rgb", checkpoint)
    assert "no video lies in this folder" in predict(tmp_path, *rgb, status=1).output
    assert "there is no such file or folder" in predict(tmp_path / "a.mp4", *rgb, status=1).output
    for url in ("file:///etc/passwd", "http://", "ftp://example.org/a.mp4", "http://exa mple.org/", "http://[/"):
        assert "no http:// or https:// URL" in predict(url, *rgb, status=1).output
    said = predict("ftp://user:secret@example.org/a.mp4", *rgb, status=1).output
    assert "example.org" in said
    assert "secret" not in said


def test_the_next_videos_are_prepared_meanwhile():
    both_at_work, started = threading.Barrier(2, timeout=60), []

    def work(video):
        started.append(video)
        if len(started) <= 2:
            both_at_work.wait()
        if video.name == "3":
            raise VideoError("corrupt", "3")
        return video.name

    videos = [Path(str(number)) for number in range(20)]
    results = ahead(videos, work, 2)
    assert next(results) == (Path("0"), "0")
    assert len(started) <= 5  # those of two workers and as many waiting, and one in place of the first
    found = dict(results)
    assert list(found) == videos[1:]
    assert [str(result) for result in found.values() if isinstance(result, VideoError)] == ["corrupt: 3"]

    def broken(_):
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        list(ahead(videos, broken, 2))


def test_what_cannot_be_written_is_said_before_the_work(folder, checkpoint, tmp_path):
    video = folder / "z.mkv"
    before = video.read_bytes()
    for option in ("--features", "--page", "--video"):
        # No such network: it would be missed first, if the place were not.
        said = predict(video, "--rgb", tmp_path / "none.pt", option, checkpoint / "out", status=1).output
        assert "rgb.pt" in said
        assert "none.pt" not in said
        said = predict(video, "--rgb", checkpoint, option, checkpoint, status=1).output
        assert "rgb.pt: that is a file of --rgb, which would be lost" in said
        said = predict(folder / "a" / ".." / "z.mkv", "--rgb", checkpoint, option, video, status=1).output
        assert "one of the videos, which would be lost" in said
    said = predict(video, "--rgb", checkpoint, "--page", tmp_path / "a", "--features", tmp_path / "a", status=1).output
    assert "a: that is --page, too" in said
    assert list(tmp_path.iterdir()) == []
    said = predict(video, "--flow", tmp_path / "f.ckpt", "--page", tmp_path / "f.ckpt.index", status=1).output
    assert "that is a file of --flow, which would be lost" in said
    for option in ("--start", "--end", "--over-time"):
        assert f"'{option}': nan is not finite" in predict(video, option, "nan", status=2).output
    for option in ("--features", "--video"):
        assert f"{option} is of one video, 4 are given" in predict(folder, option, "x", status=1).output
    assert video.read_bytes() == before


def test_a_page(folder, checkpoint, tmp_path):
    predict(folder, "--rgb", checkpoint, *SMALL, "--page", tmp_path / "page.html", status=1)
    page = (tmp_path / "page.html").read_text()
    assert "Classes over time in 4 videos" in page
    assert page.count("data:image/jpeg") == page.count("<svg") == 2
    assert "\\x1b[31m\\udcff" in page
    assert "not-a-video" in page
    assert "&lt;b&gt;run&lt;/b&gt;" in page
    assert "<b>run" not in page
    assert "http" not in page
    assert page.count("<polyline") == 2 * 3
    of_one = (folder / "z.mkv", "--rgb", checkpoint, *SMALL, "--top", 2, "--json", "--page", tmp_path / "page.html")
    (line,) = map(json.loads, predict(*of_one).stdout.splitlines())
    assert len(line["over_time"]["classes"]) == len(line["top"]) == 2
    assert (tmp_path / "page.html").read_text().count("<polyline") == 2


def test_bad_videos_are_counted_as_often_as_they_are_given(folder, checkpoint, tmp_path):
    bad = folder / "b.mp4"
    predict(bad, bad, "--rgb", checkpoint, *SMALL, "--page", tmp_path / "page.html", status=1)
    page = (tmp_path / "page.html").read_text()
    assert "Classes over time in 2 videos" in page
    assert page.count("not-a-video") == 2
    assert "And " not in page


@pytest.mark.slow
def test_a_signal_leaves_no_scratch_folder(checkpoint, tmp_path, make_video):
    video = make_video(tmp_path / "long.mp4", size="320x240", seconds=60)
    (tmp_path / "scratch").mkdir()
    code = "from train.predict_command import predict_command as command; command()"
    words = [sys.executable, "-c", code, video, "--rgb", checkpoint, "--json"]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "scratch")}
    child = subprocess.Popen([str(word) for word in words], env=environment, stdout=subprocess.DEVNULL)
    while not list((tmp_path / "scratch").glob("*/*")):
        assert child.poll() is None
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    assert child.wait(60) == 128 + signal.SIGTERM
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_video_with_flow_and_curves(checkpoint, tmp_path, make_video):
    """All moves to the right by three pixels a frame, which flow shows in red."""
    scrolled = "trim=end_frame=1,loop=loop=-1:size=1,scroll=horizontal=-0.02,gblur=2,trim=end_frame=30"
    moving = make_video(tmp_path / "moving.mp4", "-vf", scrolled, size="160x120")
    how = ("--rgb", checkpoint, "--crop", 32, "--short-side", 120, "--video", tmp_path / "out.mp4")
    predict(moving, *how, "--top", 2)
    with av.open(str(tmp_path / "out.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24").astype(float) for frame in container.decode(video=0)]
    assert len(frames) == 30
    assert frames[0].shape == (240 + 26 + 96 + 12 + 2 * 26 + 12, 640, 3)
    with av.open(str(moving)) as container:
        before = [frame.to_ndarray(format="rgb24").astype(float) for frame in container.decode(video=0)]
    assert np.abs(frames[10][:240:2, :320:2] - before[10]).mean() < 10
    flow = frames[10][20:180, 360:600].mean((0, 1))
    assert flow[0] > flow[2] + 50
    assert flow[0] > flow[1] + 50
    below = [frame[240:] for frame in frames]
    assert (np.ptp(below[0], axis=2) > 60).sum() > 300  # coloured curves and bars
    assert np.abs(below[0] - below[-1]).max() > 100  # where the video is


@pytest.mark.slow
def test_a_url(folder, checkpoint, tmp_path, serve):
    (tmp_path / "clip.mkv").write_bytes((folder / "z.mkv").read_bytes())
    (tmp_path / "page.html").write_text("<html><p>no video here")
    base = serve(tmp_path)
    urls = [f"{base.replace('://', '://user:secret@')}/clip.mkv", f"{base}/gone.mp4", f"{base}/page.html"]
    result = predict(*urls, folder / "z.mkv", "--rgb", checkpoint, *SMALL, "--json", status=1)
    assert "secret" not in result.output
    there, gone, page, file = map(json.loads, result.stdout.splitlines())
    assert there["video"] == f"{base}/clip.mkv"
    assert there["top"][0]["probability"] == pytest.approx(file["top"][0]["probability"], abs=1e-5)
    assert (gone["reason"], page["reason"]) == ("missing", "not-a-video")
