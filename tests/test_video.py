"""One file prepared: cut, 25 fps by timestamps, size, colour, and a reason for what cannot be."""

import subprocess
import sys

import av
import numpy as np
import pytest

from manifests.sample import RgbCoding
from pipeline.video import VideoError, decode_luma, decode_rgb, encode_rgb, probe

SMALL = RgbCoding(short_side=64)


def encode(path, tmp_path, start=0.0, end=None, coding=SMALL, **options):
    return encode_rgb(path, tmp_path / "out.mp4", coding, start, end, **options)


def counter_video(path, frames, rate, *options):
    """A video whose frame i shows the number i as eight black or white bars: what is shown when can be read back."""
    bits = (np.arange(frames)[:, None] >> np.arange(8)) & 1
    pictures = np.broadcast_to(np.repeat(bits, 8, axis=1)[:, None, :] * 255, (frames, 64, 64)).astype(np.uint8)
    command = ["ffmpeg", "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "gray", "-s", "64x64", "-r", str(rate)]
    command = [*command, "-i", "-", "-c:v", "ffv1", "-pix_fmt", "yuv420p", *options, str(path)]
    subprocess.run(command, input=pictures.tobytes(), check=True, timeout=60)
    return path


def shown_frames(stored):
    """Which source frame each stored picture shows."""
    bars = decode_luma(stored.content).reshape(stored.frames, 64, 8, 8).mean((1, 3))
    return ((bars > 127) << np.arange(8)).sum(1)


@pytest.mark.parametrize("rate", [10, 24, 25, 30, 50, 60])
def test_frames_are_taken_by_their_timestamps(tmp_path, rate):
    frames = rate * 2 if rate <= 50 else 100
    stored = encode(counter_video(tmp_path / "in.mkv", frames, rate), tmp_path)
    shown = shown_frames(stored)
    assert stored.frames == round(frames * 25 / rate)
    # Picture k shows the last frame whose time, rounded to the 25 fps grid, is not after k/25 s; times are in whole ms.
    late = np.arange(stored.frames) / 25 - shown / rate
    assert late.min() >= -0.5 / 25 - 0.001
    assert late.max() <= max(1 / rate, 1 / 25) + 0.001
    distinct = len(np.unique(shown))
    assert stored.duplicated == stored.frames - distinct
    assert stored.dropped == frames - distinct


def test_cut_is_frame_exact_though_keyframes_are_far_apart(tmp_path):
    path = tmp_path / "in.mp4"
    counter_video(path, 100, 25, "-c:v", "libx264", "-qp", "0", "-g", "1000")
    stored = encode(path, tmp_path, 1.0, 3.0)
    np.testing.assert_array_equal(shown_frames(stored), np.arange(25, 75))
    assert (stored.frames, stored.duplicated, stored.dropped) == (50, 0, 0)


@pytest.mark.parametrize("start", [0, 1, 12])
def test_an_index_that_points_behind_the_frame(tmp_path, start):
    """AVI with B-frames: FFmpeg's seek lands on a frame that needs an earlier one, and shows grey with edges."""
    path = tmp_path / "in.avi"
    counter_video(path, 375, 25, "-c:v", "mpeg4", "-q:v", "1", "-bf", "2", "-g", "250")
    shown = shown_frames(encode(path, tmp_path, float(start), start + 1.0))
    # AVI has no time stamps of its own, so B-frames shift what is shown when by a frame.
    np.testing.assert_allclose(shown, (25 * start + np.arange(25)) % 256, atol=1)


def test_cut_past_the_end_keeps_what_there_is(tmp_path, make_video):
    path = make_video(tmp_path / "in.mp4", seconds=2)
    assert encode(path, tmp_path, 1.0, 11.0).frames == 25
    assert encode(path, tmp_path, 1.64, 11.0).frames == 9
    with pytest.raises(VideoError, match=r"too-short: 8 frames at 25 fps from 1\.68 s on, 9 are needed"):
        encode(path, tmp_path, 1.68, 11.0)
    with pytest.raises(VideoError, match="too-short: 0 frames"):
        encode(path, tmp_path, 60.0, 70.0)


@pytest.mark.parametrize(
    ("size", "options", "stored_size"),
    [
        ("160x120", (), (86, 64)),
        ("120x160", (), (64, 86)),
        ("161x121", (), (86, 64)),
        ("64x64", (), (64, 64)),
        ("30x20", (), (96, 64)),
        ("160x120", ("-vf", "setsar=4/3"), (114, 64)),
    ],
)
def test_sizes(tmp_path, make_video, size, options, stored_size):
    path = make_video(tmp_path / "in.mkv", "-c:v", "ffv1", *options, size=size, seconds=1)
    stored = encode(path, tmp_path)
    assert (stored.width, stored.height) == stored_size
    assert decode_rgb(stored.content).shape == (25, stored_size[1], stored_size[0], 3)


def test_rotation_is_applied(tmp_path, make_video):
    plain = make_video(tmp_path / "plain.mp4", seconds=1)
    turned = tmp_path / "turned.mp4"
    subprocess.run(
        ["ffmpeg", "-v", "error", "-i", plain, "-c", "copy", "-metadata:s:v", "rotate=90", turned], check=True
    )
    entries = "stream_side_data=rotation"
    command = ["ffprobe", "-v", "error", "-show_entries", entries, "-of", "default=nk=1:nw=1", turned]
    anticlockwise_degrees = int(subprocess.run(command, check=True, capture_output=True).stdout)
    upright, rotated = encode(plain, tmp_path), encode(turned, tmp_path)
    assert (rotated.width, rotated.height) == (upright.height, upright.width)
    wanted = np.rot90(decode_luma(upright.content)[0].astype(int), anticlockwise_degrees // 90)
    assert np.abs(decode_luma(rotated.content)[0] - wanted).mean() < 6


@pytest.mark.parametrize("options", [(), ("-colorspace", "bt709"), ("-pix_fmt", "yuv444p10le"), ("-pix_fmt", "gray")])
def test_stored_form(tmp_path, make_video, options):
    path = make_video(tmp_path / "in.mkv", "-c:v", "ffv1", *options, seconds=1)
    stored = encode(path, tmp_path)
    (tmp_path / "stored.mp4").write_bytes(stored.content)
    probed = probe(tmp_path / "stored.mp4")
    assert (probed.frame_rate, probed.colour_matrix) == (25, "smpte170m")
    with av.open(str(tmp_path / "stored.mp4")) as container:
        frame = next(container.decode(video=0))
        assert (frame.format.name, int(frame.color_range)) == ("yuv420p", 1)
        assert len(container.streams) == 1
    with av.open(str(tmp_path / "stored.mp4")) as container:
        packets = sorted((packet.pts, packet.is_keyframe) for packet in container.demux(video=0) if packet.size)
        assert [place for place, (_, key) in enumerate(packets) if key] == [0, 16]


def test_the_colours_of_hd_are_converted(tmp_path):
    """A pure colour looks the same after preparation, though BT.709 and BT.601 code it differently."""
    path = tmp_path / "in.mkv"
    source = "color=c=0x30C040:size=1280x720:rate=25:duration=1,format=gbrp"
    to_709 = "scale=out_color_matrix=bt709:out_range=tv,format=yuv420p"
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", f"{source},{to_709}", "-c:v", "ffv1"]
    for tags in ((), ("-colorspace", "bt709")):
        subprocess.run([*command, *tags, "-y", path], check=True, timeout=60)
        colour = decode_rgb(encode(path, tmp_path).content).reshape(-1, 3).mean(0)
        assert np.abs(colour - (0x30, 0xC0, 0x40)).max() < 4


def test_same_bytes_each_time(tmp_path, make_video):
    path = make_video(tmp_path / "in.mp4", "-metadata", "title=secret", seconds=1)
    first, second = encode(path, tmp_path), encode(path, tmp_path)
    assert first == second
    assert b"secret" not in first.content


def test_names_are_never_options(tmp_path, make_video):
    make_video(tmp_path / "plain.mp4", seconds=1)
    for name in ("-i.mp4", "a b'\"$(x).mp4", "http:x.mp4", "%d.mp4", "concat:a|b.mp4"):
        odd = tmp_path / name
        (tmp_path / "plain.mp4").rename(odd)
        assert encode(odd, tmp_path).frames == 25
        odd.rename(tmp_path / "plain.mp4")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty-file"),
        (b"<!doctype html><html><body>Video unavailable</body></html>", "not-a-video"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "not-a-video"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "not-a-video"),
        (b"\x00" * 4096, "not-a-video"),
    ],
)
def test_what_is_no_video(tmp_path, content, reason):
    path = tmp_path / "in.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoError) as caught:
        encode(path, tmp_path)
    assert caught.value.reason == reason
    assert str(tmp_path) not in caught.value.message


def test_the_longest_cut_that_a_list_can_ask_for(tmp_path, make_video):
    path = make_video(tmp_path / "in.mp4", seconds=1)
    assert encode(path, tmp_path, 0.0, 999_999.0).frames == 25


def test_pictures_of_an_impossible_shape(tmp_path, make_video):
    path = make_video(tmp_path / "in.mkv", "-c:v", "ffv1", size="2000x2", seconds=1)
    with pytest.raises(VideoError, match=r"odd-shape: in\.mkv: 2000x2"):
        encode(path, tmp_path)


def test_clips_that_are_too_long(tmp_path, make_video):
    path = make_video(tmp_path / "in.mp4", seconds=4)
    assert encode(path, tmp_path, 1.0, 3.0, maximum_seconds=2.0).frames == 50
    for end in (None, 3.5):
        with pytest.raises(VideoError, match="too-long: longer than 2 s"):
            encode(path, tmp_path, 1.0, end, maximum_seconds=2.0)


def test_the_size_may_change(tmp_path):
    """FFmpeg builds its filters anew there, and counts from zero: it loses the picture before, and no other."""
    parts = [tmp_path / "0.ts", tmp_path / "1.ts"]
    for number, part in enumerate(parts):
        scale = f"scale={64 * (number + 1)}:64:flags=neighbor"
        options = ("-vf", scale, "-c:v", "libx264", "-qp", "0", "-bf", "0", "-output_ts_offset", str(number))
        counter_video(part, 25, 25, *options)
    path = tmp_path / "in.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    stored = encode(path, tmp_path)
    shown = shown_frames(stored)
    changes = shown[np.append(True, np.diff(shown) != 0)]
    np.testing.assert_array_equal(changes, [*range(24), *range(25)])
    assert (stored.width, stored.height, stored.dropped) == (64, 64, 1)
    assert stored.duplicated == stored.frames - len(changes)


def test_a_gap_holds_what_was_shown_before_it(tmp_path):
    """Ten hours without a frame: no memory, no time, and never a picture that comes hours later."""
    path, gap = counter_video(tmp_path / "in.mkv", 25, 25), tmp_path / "gap.mkv"
    late = "PTS+if(gte(N,12),36000000,0)"
    command = ["ffmpeg", "-v", "error", "-i", path, "-c", "copy", "-bsf:v", f"setts=pts='{late}':dts='{late}'", gap]
    subprocess.run(command, check=True, timeout=60)
    stored = encode(gap, tmp_path, 0.0, 2.0)
    np.testing.assert_array_equal(shown_frames(stored), [*range(12), *[11] * 38])
    assert (stored.duplicated, stored.dropped) == (38, 0)
    with pytest.raises(VideoError, match="too-short: 0 frames"):
        encode(gap, tmp_path, 100.0, 101.0)


@pytest.mark.parametrize("bound", ["MAXIMUM_STORED_BYTES", "MAXIMUM_SOURCE_PIXELS"])
def test_what_a_worker_may_spend(tmp_path, make_video, monkeypatch, bound):
    path = make_video(tmp_path / "in.mp4", size="640x480", seconds=0.4)
    assert encode(path, tmp_path).frames == 10
    limits = {"MAXIMUM_STORED_BYTES": 1000, "MAXIMUM_SOURCE_PIXELS": 640 * 479}
    monkeypatch.setattr(f"pipeline.video.{bound}", limits[bound])
    with pytest.raises(VideoError) as caught:
        encode(path, tmp_path)
    assert caught.value.reason == "too-large"


GROWTH = """
import sys
from pathlib import Path
from pipeline.video import encode_rgb, flow_coding, flow_of
from manifests.sample import RgbCoding
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1e3
folder = Path(sys.argv[1])
for seconds in (8, 120):
    rgb = encode_rgb(folder / "in.mkv", folder / "out.mp4", RgbCoding(short_side=128), 0, seconds)
    assert flow_of(rgb.content, flow_coding()).frames == 25 * seconds - 1
    print(peak())
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_clip(tmp_path):
    """Luma of 120 s at this size is 61 MB, and what is held at a time some 15 MB."""
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "color=gray:size=160x128:rate=25:duration=120"]
    subprocess.run([*command, "-c:v", "ffv1", tmp_path / "in.mkv"], check=True, timeout=60)
    done = subprocess.run([sys.executable, "-c", GROWTH, tmp_path], check=True, capture_output=True, timeout=300)
    short, long = map(float, done.stdout.split())
    assert long - short < 20


def test_no_video_stream(tmp_path):
    path = tmp_path / "in.mp4"
    source = "sine=frequency=440:duration=1"
    subprocess.run(["ffmpeg", "-v", "error", "-f", "lavfi", "-i", source, str(path)], check=True, timeout=60)
    with pytest.raises(VideoError, match=r"no-video-stream: in\.mp4 has no video stream \(streams: audio\)"):
        encode(path, tmp_path)


def test_truncated_video_is_a_short_clip_or_a_reason(tmp_path, make_video):
    whole = make_video(tmp_path / "whole.mkv", "-c:v", "mpeg4", seconds=2)
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert 9 <= encode(cut, tmp_path).frames < 50
    headless = make_video(tmp_path / "headless.mp4", seconds=1)
    headless.write_bytes(headless.read_bytes()[:3000])
    with pytest.raises(VideoError) as caught:
        encode(headless, tmp_path)
    assert caught.value.reason == "not-a-video"
