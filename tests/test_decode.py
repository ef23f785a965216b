"""Windows and whole clips as the networks see them, against plain decoding of the same files."""

import io
import subprocess

import av
import numpy as np
import pytest
import torch

from flow import decode_flow_codes, decode_frames, dequantise, encode_flow
from manifests.sample import FLOW, RGB
from pipeline.video import VideoError, decode_rgb
from tests import golden
from train.decode import network_input, training_window, whole_clip
from train.plan import View
from train.stream import open_samples


@pytest.fixture(scope="module")
def members():
    """RGB and flow of a clip of a second, 48x48."""
    return next(iter(open_samples(str(golden.DATASET), "train"))).read()


@pytest.fixture(scope="module")
def clip(make_video, tmp_path_factory):
    """A video of 60 moving pictures, 70x50, by options of ffmpeg."""

    def make(*options, size="70x50"):
        path = tmp_path_factory.mktemp("clip") / "clip.mp4"
        make_video(path, "-vf", f"noise=alls=20:allf=t:all_seed=1,scale={size},format=yuv420p", *options, seconds=2.4)
        return path.read_bytes()

    return make


def planes_of(video, stream):
    """All pictures by PyAV's own conversion to arrays: Y, U and V, or x and y, [T, H, W] each."""
    with av.open(io.BytesIO(video)) as container:
        frames = list(container.decode(video=0))
    if stream == "flow":
        codes = np.stack([frame.to_ndarray(format="gray") for frame in frames])
        return np.split(codes, 2, axis=1)
    planes = [
        [np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size) for plane in frame.planes] for frame in frames
    ]
    widths = [plane.width for plane in frames[0].planes]
    return [np.stack([p[i][:, : widths[i]] for p in planes]) for i in range(3)]


def parts_of(window, stream):
    """The planes of what `training_window` and `whole_clip` give."""
    crop = window.shape[2]
    first, rest = window[:, :crop], window[:, crop:]
    return [first, rest] if stream == "flow" else [first, rest[:, :, : crop // 2], rest[:, :, crop // 2 :]]


def crops_of(planes, pictures, top, left, crop):
    """The same crop of all planes; those of U and V lie at half of its place."""
    shares = [planes[0].shape[1] // (plane.shape[1] - 1) for plane in planes]
    return [
        plane[list(pictures), top // s : (top + crop) // s, left // s : (left + crop) // s]
        for plane, s in zip(planes, shares, strict=True)
    ]


def assert_same(found, wanted):
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_windows_are_pieces_of_the_clip(members, stream):
    video = members[f"{stream}.mp4"]
    planes = planes_of(video, stream)
    count = len(planes[0])
    windows = [range(start, start + 7) for start in range(count - 6)]
    sparse = [(0, 5, 10, 15), (count - 1,), (3, 4, 17, 18)]
    looping = [tuple(k % count for k in range(40)), (20, 21, 22, 0, 1), (7,) * 9]
    for pictures in [*windows, *sparse, *looping]:
        window = training_window(video, stream, View(0, {stream: pictures}, 0.999, 0.4, flip=False), 32)
        assert_same(parts_of(window, stream), crops_of(planes, pictures, 16, 6, 32))


def test_crops_begin_at_even_places_and_reach_both_ends(members):
    whole, places = planes_of(members[RGB], "rgb")[0][3], set()
    pieces = {whole[top : top + 44, left : left + 44].tobytes(): (top, left) for top in range(5) for left in range(5)}
    for where in np.linspace(0, 0.999, 100):
        window = training_window(members[RGB], "rgb", View(0, {"rgb": (3,)}, where, where, flip=False), 44)
        places.add(pieces[window[0, :44].tobytes()])
    assert places == {(0, 0), (2, 2), (4, 4)}


@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_a_mirrored_clip_moves_the_other_way(members, stream):
    video = members[f"{stream}.mp4"]
    plain, mirrored = (
        parts_of(training_window(video, stream, View(0, {stream: range(3, 15)}, 0.3, 0.6, flip), 40), stream)
        for flip in (False, True)
    )
    if stream == "rgb":
        assert_same(mirrored, [plane[:, :, ::-1] for plane in plain])
    else:
        assert np.array_equal(mirrored[1], plain[1][:, :, ::-1])
        x = plain[0][:, :, ::-1].astype(int)
        assert np.array_equal(mirrored[0], 256 - np.maximum(x, 1))


def test_mirroring_keeps_codes_within_their_range():
    """Code 0 is none of ours, but a lossy video may show it."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "0"})
        stream.width, stream.height, stream.pix_fmt = 256, 64, "gray"
        stream.codec_context.color_range = 2
        picture = np.repeat(np.arange(256, dtype=np.uint8)[None], 64, axis=0)
        for _ in range(9):
            frame = av.VideoFrame.from_ndarray(picture, format="gray")
            frame.color_range = 2
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    window = training_window(buffer.getvalue(), "flow", View(0, {"flow": range(9)}, 0, 0, flip=True), 32)
    assert window[0, 0].tolist() == [256 - max(code, 1) for code in range(31, -1, -1)]
    assert window[0, 32].tolist() == list(range(31, -1, -1))


def test_testing_sees_the_middle(members):
    for stream in ("rgb", "flow"):
        video = members[f"{stream}.mp4"]
        planes = planes_of(video, stream)
        count = len(planes[0])
        assert_same(parts_of(whole_clip(video, stream, 32), stream), crops_of(planes, range(count), 8, 8, 32))
        first = (count - 9) // 2
        middle = range(first, first + 9)
        assert_same(parts_of(whole_clip(video, stream, 32, middle), stream), crops_of(planes, middle, 8, 8, 32))


CODINGS = {
    "x264's defaults": ("-c:v", "libx264"),
    "pictures out of order": ("-c:v", "libx264", "-bf", "8", "-x264-params", "b-pyramid=normal:keyint=20:b-adapt=0"),
    "every picture on its own": ("-c:v", "libx264", "-g", "1"),
    "no references skipped": ("-c:v", "libx264", "-tune", "zerolatency"),
    "open groups": ("-c:v", "libx264", "-g", "12", "-x264-params", "open-gop=1:bframes=3"),
}


@pytest.mark.parametrize("coding", CODINGS)
def test_windows_do_not_depend_on_the_coding(clip, coding):
    """What is left out of the way to a window is what nothing refers to, wherever its keyframe lies."""
    video = clip(*CODINGS[coding], "-color_range", "tv")
    planes = planes_of(video, "rgb")
    assert len(planes[0]) == 60
    for pictures in [*(range(start, start + 5) for start in range(0, 56, 3)), (0, 59), range(0, 60, 7)]:
        window = training_window(video, "rgb", View(0, {"rgb": pictures}, 0.999, 0.999, flip=False), 48)
        assert_same(parts_of(window, "rgb"), crops_of(planes, pictures, 2, 22, 48))


def test_odd_sizes(clip):
    """The last row and column of an odd picture have colours of their own, and no crop reaches them."""
    video = clip("-c:v", "mpeg4", "-color_range", "tv", size="71x49")
    planes = planes_of(video, "rgb")
    assert [plane.shape[1:] for plane in planes] == [(49, 71), (25, 36), (25, 36)]
    window = training_window(video, "rgb", View(0, {"rgb": range(20, 30)}, 0.999, 0.999, flip=False), 32)
    wanted = [planes[0][20:30, 16:48, 38:70], *(plane[20:30, 8:24, 19:35] for plane in planes[1:])]
    assert_same(parts_of(window, "rgb"), wanted)


def test_colours_are_those_of_ffmpeg(members, clip):
    """But for its rounding, which makes it darker by up to 3 of 255."""
    noise = clip("-c:v", "libx264", "-color_range", "tv")
    for video, top, left, crop in ((members[RGB], 2, 2, 44), (noise, 0, 10, 50)):
        wanted = decode_rgb(video)[:, top : top + crop, left : left + crop].astype(float)
        x = network_input(torch.from_numpy(whole_clip(video, "rgb", crop))[None], "rgb")
        assert x.shape == (1, 3, len(wanted), crop, crop)
        assert x.is_contiguous(memory_format=torch.channels_last_3d)
        found = (x[0].permute(1, 2, 3, 0).numpy() + 1) * 127.5
        assert np.abs(found - wanted).max() <= 3.5
        assert np.abs(found - wanted).mean() <= 1.5


def test_colours_that_are_known(tmp_path):
    """Black, white and the colours between them, within what 8 bits of YUV can say."""
    for colour in ((0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255), (48, 192, 64)):
        path = tmp_path / "colour.mp4"
        source = f"color=c=0x{bytes(colour).hex()}:size=64x64:rate=25:duration=0.4,format=gbrp"
        to_601 = "scale=out_color_matrix=bt601:out_range=tv,format=yuv420p"
        command = ["ffmpeg", "-v", "error", "-y", "-f", "lavfi", "-i", f"{source},{to_601}", "-c:v", "libx264"]
        subprocess.run([*command, "-qp", "0", "-color_range", "tv", path], check=True, timeout=60)
        x = network_input(torch.from_numpy(whole_clip(path.read_bytes(), "rgb", 32))[None], "rgb")
        assert np.abs((x[0, :, 0, 5, 5].numpy() + 1) * 127.5 - colour).max() < 2.5, colour
    ends = torch.full((1, 1, 48, 32), 128, dtype=torch.uint8)
    for y, wanted in ((0, -1), (16, -1), (235, 1), (255, 1)):
        ends[:, :, :32] = y
        assert (network_input(ends, "rgb") - wanted).abs().max() < 1e-6


def test_flow_comes_back_in_shares_of_its_bound(members):
    stored = torch.tensor([1, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 64, 32)
    x = network_input(stored.contiguous(), "flow")
    assert x.shape == (2, 2, 3, 32, 32)
    assert x[0, 0, :, 0, 0].tolist() == [-1, 0, 1]
    assert x.is_contiguous(memory_format=torch.channels_last_3d)
    whole = network_input(torch.from_numpy(whole_clip(members[FLOW], "flow", 32))[None], "flow")
    wanted = dequantise(decode_flow_codes(members[FLOW]))[:, 8:40, 8:40] / 20
    np.testing.assert_allclose(whole[0].permute(1, 2, 3, 0).numpy(), wanted, atol=1e-6)


def test_what_no_window_can_be_cut_from(members, clip):
    def window(video, stream="rgb", pictures=(0, 1, 2), crop=32):
        return training_window(video, stream, View(0, {stream: pictures}, 0, 0, flip=False), crop)

    for stream in ("rgb", "flow"):
        with pytest.raises(ValueError, match="pictures of 48x48 are smaller than the crop of 64x64"):
            window(members[f"{stream}.mp4"], stream, crop=64)
        with pytest.raises(ValueError, match=r"a crop of 33x33: colour is stored for 2x2 pixels, want an even number"):
            window(members[f"{stream}.mp4"], stream, crop=33)
    with pytest.raises(VideoError, match="corrupt: stored video ends before picture 25, which was wanted"):
        window(members[RGB], pictures=range(20, 30))
    with pytest.raises(ValueError, match="video ends before picture 24"):
        window(members[FLOW], "flow", range(20, 30))
    for damaged in (b"", b"nothing", members[RGB][:2000], members[RGB][-2000:]):
        with pytest.raises(VideoError, match="corrupt: stored video"):
            window(damaged)
    for options in (("-pix_fmt", "yuv444p", "-vf", "null"), ("-color_range", "pc")):
        with pytest.raises(VideoError, match=r"a stored picture of .*, not .* yuv420p, limited range"):
            window(clip("-c:v", "libx264", *options))
    with pytest.raises(ValueError, match="full range"):
        window(members[RGB], "flow")


def test_damage_within_is_not_another_picture(members):
    """A picture whose bytes are gone is missed, and never replaced by one beside it."""
    video, found = bytearray(members[RGB]), []
    with av.open(io.BytesIO(bytes(video))) as container:
        packets = [(packet.pos, packet.size, packet.pts) for packet in container.demux(video=0) if packet.size]
    for position, size, _ in packets[4:8]:
        video[position : position + size] = bytes(size)
    with pytest.raises(VideoError, match="corrupt: stored video"):
        found = training_window(bytes(video), "rgb", View(0, {"rgb": range(12)}, 0, 0, flip=False), 32)
    assert found == []


@pytest.mark.parametrize("numbers", [(), (-1, 0), (-2,)])
def test_pictures_that_cannot_be_meant(numbers):
    with pytest.raises(ValueError, match="want at least one, and none before picture 0"):
        list(decode_frames(encode_flow(np.zeros((4, 16, 16, 2))), numbers))
