"""`python -m flow`: the flow of a video, and the forms it is written in."""

import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from flow import decode_flow_codes, dequantise, quantise, tvl1
from flow.__main__ import main
from flow.files import read_flo
from manifests.sample import RgbCoding
from pipeline.video import encode_rgb, flow_coding, flow_of
from tests.test_flow import moving_texture

ROOT = Path(__file__).parents[1]


@pytest.fixture
def video(tmp_path):
    """Five frames of 81x63 (odd, both), lossless, 30 a second."""
    file = tmp_path / "in put.mkv"
    frames = moving_texture(frames=5, dx=2, dy=1, width=81, height=63)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("ffv1", rate=30)
        stream.height, stream.width, stream.pix_fmt = 63, 81, "bgr0"
        for number, grey in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.repeat(grey[..., None], 3, axis=2), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file, frames


def run(*arguments, status=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output + repr(result.exception)
    return result.output


def test_every_form_holds_the_flow_of_the_frames(video, tmp_path):
    file, frames = video
    flow = tvl1(frames)
    run(file, "-o", tmp_path / "all.npy", "--threads", 3)
    np.testing.assert_array_equal(np.load(tmp_path / "all.npy"), flow)

    said = run(file, "-o", tmp_path / "folder")
    assert "4/4 pairs" in said
    names = [f"flow_{i:05d}.flo" for i in range(1, 5)]
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == names
    np.testing.assert_array_equal(np.stack([read_flo(tmp_path / "folder" / name) for name in names]), flow)

    run(file, "-o", tmp_path / "jpeg", "--format", "jpeg", "--bound", 5)
    names = [f"flow_{c}_{i:05d}.jpg" for c in "xy" for i in range(1, 5)]
    assert sorted(path.name for path in (tmp_path / "jpeg").iterdir()) == names
    stored = cv2.imread(str(tmp_path / "jpeg" / "flow_y_00002.jpg"), cv2.IMREAD_UNCHANGED).astype(int)
    assert np.abs(stored - quantise(flow[1], 5)[..., 1]).mean() < 2

    run(file, "-o", tmp_path / "a.flow.mp4")
    decoded = dequantise(decode_flow_codes((tmp_path / "a.flow.mp4").read_bytes()))
    assert decoded.shape == (4, 62, 80, 2)  # stored sizes are even
    assert np.abs(decoded - flow[:, :62, :80]).mean() < 0.15


def test_pictures_show_the_frame_beside_the_flow(video, tmp_path):
    file, frames = video
    run(file, "-o", tmp_path / "png", "--format", "png", "--bound", 4)
    picture = cv2.imread(str(tmp_path / "png" / "flow_00003.png"))[..., ::-1].astype(int)
    assert picture.shape == (63, 162, 3)
    np.testing.assert_array_equal(picture[:, :81], np.repeat(frames[2][..., None], 3, axis=2))
    red, green, blue = picture[5:12, 85:150].mean((0, 1))  # above the legend; it moves to the right and down
    assert red > green > blue
    run(file, "-o", tmp_path / "look.mp4")
    with av.open(str(tmp_path / "look.mp4")) as container:
        assert [(frame.width, frame.height) for frame in container.decode(video=0)] == [(162, 62)] * 4


def test_names_with_colons_folders_to_be_made_and_the_rate(video, tmp_path, monkeypatch):
    file, frames = video
    monkeypatch.chdir(tmp_path)
    shutil.copy(file, "http:x.mkv")
    run("http:x.mkv", "-o", "new/folder/x:y.mp4")
    run("http:x.mkv", "-o", "-x.npy")
    np.testing.assert_array_equal(np.load("-x.npy"), tvl1(frames))
    with av.open("file:new/folder/x:y.mp4") as container:
        assert container.streams.video[0].average_rate == 30


def test_a_stored_clips_flow_is_the_pipelines(make_video, tmp_path):
    """The same grey, so the same codes."""
    stored = tmp_path / "rgb.mp4"
    make_video(tmp_path / "in.mp4", seconds=0.5)
    encoded = encode_rgb(tmp_path / "in.mp4", stored, RgbCoding(short_side=64))
    run(stored, "-o", tmp_path / "x.npy")
    codes = decode_flow_codes(flow_of(encoded.content, flow_coding(crf=0)).content)
    np.testing.assert_array_equal(quantise(np.load(tmp_path / "x.npy")), codes)


@pytest.mark.slow
def test_signals_leave_nothing_behind(video, tmp_path):
    """And two at once with one output do not touch each other's work."""
    file, _ = video
    with av.open(str(tmp_path / "long.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = 360, 480, "bgr0"
        for grey in moving_texture(frames=40, dx=2, dy=1, width=480, height=360):
            picture = np.repeat(grey[..., None], 3, axis=2)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    before = sorted(tmp_path.iterdir())
    command = [sys.executable, "-m", "flow", tmp_path / "long.mkv", "-o", tmp_path / "o"]
    for number in (signal.SIGTERM, signal.SIGINT):
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        while not list(tmp_path.glob(".flow-*/o/*.flo")):
            assert process.poll() is None
            time.sleep(0.05)
        run(tmp_path / "no.mp4", "-o", tmp_path / "o", status=2)
        run(file, "-o", tmp_path / "o")
        process.send_signal(number)
        assert process.wait(30) != 0
        shutil.rmtree(tmp_path / "o")
        assert sorted(tmp_path.iterdir()) == before


def test_frames_are_resized_first(video, tmp_path):
    file, _ = video
    run(file, "-o", tmp_path / "small.npy", "--short-side", 32)
    assert np.load(tmp_path / "small.npy").shape == (4, 32, 41, 2)


def test_bad_videos_and_outputs(video, tmp_path):
    file, _ = video
    (tmp_path / "text.mp4").write_text("no video")
    assert "Invalid data" in run(tmp_path / "text.mp4", "-o", tmp_path / "x.npy", status=1)
    one = tmp_path / "one.png"
    cv2.imwrite(str(one), np.zeros((40, 40, 3), np.uint8))
    assert "1 frame: flow needs two or more" in run(one, "-o", tmp_path / "x.npy", status=1)
    tiny = tmp_path / "tiny.gif"
    with av.open(str(tiny), "w") as container:
        stream = container.add_stream("gif", rate=25)
        stream.height, stream.width, stream.pix_fmt = 12, 40, "rgb8"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((12, 40, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    assert "40x12: flow needs sides of at least 16" in run(tiny, "-o", tmp_path / "x.npy", status=1)
    assert "exists already" in run(file, "-o", tmp_path, status=1)
    assert "one file ends in .flow.mp4, .npy, .mp4" in run(file, "-o", tmp_path / "x.avi", status=1)
    assert "--format jpeg is for folders" in run(file, "-o", tmp_path / "x.NPY", "--format", "jpeg", status=1)
    for bound in ("nan", "inf", "0", "1e-300"):
        assert "pixels: must be from" in run(file, "-o", tmp_path / "x.flow.mp4", "--bound", bound, status=1)
    assert "File name too long" in run(file, "-o", tmp_path / ("x" * 300), status=1)
    assert "File exists" in run(file, "-o", one / "x.npy", status=1)
    assert "needs a" in run(file, "-o", tmp_path / "x.npy", "--backend", "opencv-cuda", status=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in put.mkv", "one.png", "text.mp4", "tiny.gif"]


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "not a .flo file"), (b"PIEH", "not a .flo file"), (b"PIEH" + b"\2\0\0\0" * 2 + b"\0" * 31, "43 bytes")],
)
def test_damaged_flo_files(tmp_path, content, said):
    (tmp_path / "a.flo").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_flo(tmp_path / "a.flo")
