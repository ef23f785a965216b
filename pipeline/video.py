"""One video file prepared for the networks: trim, 25 fps by timestamps, resize, encode, flow, decode. No Beam here.

The trainer's prediction prepares its files with these same functions.
"""

import io
import json
import math
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import ffmpeg
import numpy as np

from flow import VARIANTS, TVL1Params, decode_frames, encode_flow, plane_of, tvl1
from flow.coding import FULL_RANGE
from manifests.sample import MINIMUM_FRAMES, FlowCoding, RgbCoding
from pipeline.process import ChildError, ChildKilled, ChildTimeout, ChildTooLarge, run_child

PROBE_DEADLINE_SECONDS = 60.0
# Encoding runs at several times real time; the floor covers start-up on a loaded machine, seeks in long files, and
# ten seconds of 8K.
ENCODE_DEADLINE_SECONDS = 300.0
ENCODE_DEADLINE_PER_SECOND = 6.0
MAXIMUM_CLIP_SECONDS = 600.0
# What a worker may be made to spend. Ten frames of 8K take ffmpeg 0.4 GB of memory; the limit is of address space.
MAXIMUM_SOURCE_PIXELS = 8192 * 4320
MAXIMUM_TOOL_BYTES = 4 << 30
MAXIMUM_STORED_BYTES = 1 << 30
MAXIMUM_ASPECT = 10
FLOW_PAIRS_AT_A_TIME = 64
SEEK_MARGIN_SECONDS = 10.0
# Containers that hold video themselves. Playlists (hls, dash, concat, …) name other files and stay shut.
CONTAINERS = "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,h264,hevc,m4v,mjpeg,3gp,mp4,rawvideo,nut"
FPS_COUNTS = re.compile(r"(\d+) frames in, (\d+) frames out; (\d+) frames dropped, (\d+) frames duplicated")

RATIO = re.compile(r"[1-9][0-9]*/[1-9][0-9]*")


class VideoError(Exception):
    """A video that cannot be prepared: `reason` from the ledger's list, `message` as the tool wrote it."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason, self.message = reason, message


@dataclass(frozen=True)
class SourceVideo:
    """What a source file holds: its first video stream as it is coded, before rotation and pixel shape are applied."""

    width: int
    height: int
    frame_rate: Fraction
    colour_matrix: str  # as FFmpeg names it; "unknown" where the file does not say


@dataclass(frozen=True)
class StoredRgb:
    """A prepared clip: the bytes of `KEY.rgb.mp4` and what its metadata says of it."""

    content: bytes
    frames: int
    width: int
    height: int
    duplicated: int
    dropped: int
    source: SourceVideo


@dataclass(frozen=True)
class StoredFlow:
    """The flow of a prepared clip: the bytes of `KEY.flow.mp4` and its size, of each of the two components."""

    content: bytes
    frames: int
    width: int
    height: int


def probe(path: Path | str) -> SourceVideo:
    """Look into a video: a file's path, or a URL on this machine (`pipeline.remote`).

    Raises:
        VideoError: empty-file, not-a-video, no-video-stream, odd-shape, too-large, corrupt, timeout, killed.
    """
    name = Path(path).name
    if isinstance(path, Path) and path.stat().st_size == 0:
        raise VideoError("empty-file", f"{name} has 0 bytes")
    entries = "stream=codec_type,width,height,sample_aspect_ratio,avg_frame_rate,r_frame_rate,color_space"
    entries += ":stream_disposition=attached_pic"
    arguments = ["ffprobe", "-v", "error", *_as_words(_opened(path)), "-show_entries", entries, "-of", "json"]
    output, _ = _run_tool([*arguments, _file_url(path)], path, PROBE_DEADLINE_SECONDS, "not-a-video")
    streams: list[dict[str, Any]] = json.loads(output).get("streams", [])
    videos = [s for s in streams if s.get("codec_type") == "video" and not s["disposition"]["attached_pic"]]
    if not videos:
        kinds = ", ".join(sorted({str(s.get("codec_type")) for s in streams})) or "none"
        raise VideoError("no-video-stream", f"{name} has no video stream (streams: {kinds})")
    first = videos[0]
    rate = _ratio(first.get("avg_frame_rate", "")) or _ratio(first.get("r_frame_rate", ""))
    if not first.get("width") or not first.get("height") or not rate:
        raise VideoError("corrupt", f"{name}: the video stream has no size or no frame rate")
    width, height = first["width"], first["height"]
    if width * height > MAXIMUM_SOURCE_PIXELS:
        raise VideoError("too-large", f"{name}: {width}x{height} are more than {MAXIMUM_SOURCE_PIXELS} pixels")
    pixel_shape = _ratio(first.get("sample_aspect_ratio", "").replace(":", "/")) or Fraction(1)
    if not 1 / MAXIMUM_ASPECT <= Fraction(width, height) * pixel_shape <= MAXIMUM_ASPECT:
        shape = f"{width}x{height}" + (f" of {first['sample_aspect_ratio']} pixels" if pixel_shape != 1 else "")
        raise VideoError("odd-shape", f"{name}: {shape} is longer than {MAXIMUM_ASPECT} times its width")
    return SourceVideo(width, height, rate, first.get("color_space", "unknown"))


def encode_rgb(
    path: Path | str,
    output: Path,
    coding: RgbCoding,
    start_seconds: float = 0.0,
    end_seconds: float | None = None,
    maximum_seconds: float = MAXIMUM_CLIP_SECONDS,
) -> StoredRgb:
    """Cut [start_seconds, end_seconds) out of a video and store it as `coding` says, at `output`.

    Frames are taken by their timestamps: picture k shows the source frame nearest to start + k/25 s, so a slower source
    gives duplicates and a faster one drops. A cut past the end keeps what there is, from `MINIMUM_FRAMES` frames up to
    `maximum_seconds`.

    Raises:
        VideoError: what `probe` raises; too-short, too-long.
    """
    source = probe(path)
    wanted = math.inf if end_seconds is None else end_seconds - start_seconds
    seconds = min(wanted, maximum_seconds + 1)  # a second more, to see that a clip is too long
    limit = max(1, math.floor(seconds * coding.frame_rate + 0.5))
    command = _encode_command(path, output, coding, source, start_seconds, seconds, limit)
    deadline = ENCODE_DEADLINE_SECONDS + ENCODE_DEADLINE_PER_SECOND * seconds
    _, log = _run_tool(command, path, deadline, "corrupt")
    content = output.read_bytes()
    frames, height, width = stored_shape(content)
    if frames < MINIMUM_FRAMES:
        raise VideoError(
            "too-short",
            f"{frames} frames at {coding.frame_rate} fps from {start_seconds:g} s on, {MINIMUM_FRAMES} are needed",
        )
    if frames > maximum_seconds * coding.frame_rate:
        raise VideoError("too-long", f"longer than {maximum_seconds:g} s: list stretches of it, with start and end")
    # A line for each time that ffmpeg built its filters: an empty one first, again where the picture's size changes.
    # There the filter begins with duplicates for the time that has passed, which ffmpeg throws away.
    counts = [[int(number) for number in line] for line in FPS_COUNTS.findall(log)]
    if not counts:
        raise RuntimeError(f"ffmpeg's fps filter did not report its counts:\n{log[-2000:]}")
    taken, _, dropped, duplicated = (sum(column) for column in zip(*counts, strict=True))
    if sum(line[0] > 0 for line in counts) > 1:
        duplicated = max(0, frames - (taken - dropped))
    return StoredRgb(content, frames, width, height, duplicated, dropped, source)


def read_ahead(url: str, start_seconds: float, end_seconds: float | None, deadline_seconds: float) -> None:
    """Read what `probe` and `encode_rgb` will want of a video on this machine's server, so that it is there by then.

    What is wrong with the video they will say.

    Raises:
        VideoError: timeout, killed.
    """
    start = max(0.0, start_seconds - SEEK_MARGIN_SECONDS)
    arguments = ["ffmpeg", "-nostdin", "-v", "error", "-ss", f"{start:.6f}"]
    if end_seconds is not None:
        arguments += ["-t", f"{end_seconds - start:.6f}"]
    arguments += [*_as_words(_opened(url)), "-i", url, "-map", "0:V:0", "-c", "copy", "-f", "null", "-"]
    try:
        _run_tool(arguments, url, deadline_seconds, "corrupt")
    except VideoError as error:
        if error.reason in ("timeout", "killed"):
            raise


def _encode_command(
    path: Path | str,
    output: Path,
    coding: RgbCoding,
    source: SourceVideo,
    start_seconds: float,
    seconds: float,
    frame_limit: int,
) -> list[str]:
    if coding.resize_kernel != "swscale-bilinear":
        raise ValueError(f"resize kernel {coding.resize_kernel!r} is unknown; there is 'swscale-bilinear'")
    # Seek to well before the cut and decode up to it: some containers' indexes point behind the frame that is asked for
    # (AVI with B-frames does so at second 0), and a decoder that starts there shows grey with moving edges.
    seek_seconds = max(0.0, start_seconds - SEEK_MARGIN_SECONDS)
    lead_seconds = start_seconds - seek_seconds
    times = {"t": f"{lead_seconds + seconds:.6f}"}
    if seek_seconds:
        times["ss"] = f"{seek_seconds:.6f}"
    side = coding.short_side
    stream = ffmpeg.input(_file_url(path), max_pixels=MAXIMUM_SOURCE_PIXELS, **_opened(path), **times)["V:0"]
    if lead_seconds:
        stream = stream.filter("trim", start=f"{lead_seconds:.6f}")
    # ffmpeg's own limit counts from the first frame, which may come hours after the cut; and what ends a stretch says
    # until when its last picture is to be repeated. So the end stands here, and frames that come later come then.
    stream = stream.filter("setpts", f"min({seconds:.6f}/TB,PTS-{lead_seconds:.6f}/TB)")
    stream = stream.filter("trim", end=f"{seconds:.6f}")
    # The shown aspect counts: `dar` includes the shape of the pixels, and rotation has been applied before.
    stream = stream.filter(
        "scale",
        w=f"if(lt(dar,1),{side},2*round({side}*dar/2))",
        h=f"if(lt(dar,1),2*round({side}/dar/2),{side})",
        flags="bilinear+accurate_rnd+full_chroma_int+bitexact",
        in_color_matrix=_colour_matrix(source),
        out_color_matrix="bt601",
        out_range="tv",
    )
    stream = stream.filter("setsar", 1).filter("format", "yuv420p")
    # The matrix is ours now; what the source said of primaries and transfer no longer belongs to these pictures.
    tags = {"range": "tv", "colorspace": "smpte170m", "color_primaries": "unknown", "color_trc": "unknown"}
    stream = stream.filter("setparams", **tags)
    # Behind the scaling, so that duplicates share a picture's memory: of a long gap ffmpeg makes them all at once.
    stream = stream.filter("fps", fps=coding.frame_rate, start_time=0).filter("trim", end_frame=frame_limit)
    options: dict[str, Any] = {
        "format": "mp4",
        "c:v": "libx264",
        "preset": coding.preset,
        "tune": coding.tune,
        "crf": coding.crf,
        "threads": 1,
        "x264-params": f"keyint={coding.group_of_pictures}:min-keyint=1:scenecut=0:cpu-independent=1",
        "colorspace": "smpte170m",
        "color_range": "tv",
        "map_metadata": -1,
        "map_chapters": -1,
        "fflags": "+bitexact",
        "flags:v": "+bitexact",
        "movflags": "+faststart",
        "frames:v": frame_limit,
    }
    stream = ffmpeg.output(stream, _file_url(output), **options)
    # "verbose" makes the fps filter say how many frames it dropped and duplicated.
    stream = stream.global_args("-nostdin", "-hide_banner", "-nostats", "-loglevel", "verbose", "-filter_threads", "1")
    return list(stream.compile(overwrite_output=True))


def _colour_matrix(source: SourceVideo) -> str:
    """The matrix of the source's YUV; an untagged file is taken for BT.709 from HD sizes up, as players do."""
    if source.colour_matrix not in ("unknown", "unspecified", "reserved"):
        return "auto"
    long_side, short_side = max(source.width, source.height), min(source.width, source.height)
    return "bt709" if long_side >= 1280 or short_side > 576 else "bt601"


def flow_coding(variant: str = "tvl1", crf: int = FlowCoding.crf) -> FlowCoding:
    """How flow is made, by a name of `flow.VARIANTS`, and stored."""
    return FlowCoding(variant=variant, parameters=asdict(VARIANTS[variant]), crf=crf)


def flow_of(
    rgb: bytes,
    coding: FlowCoding,
    *,
    backend: str = "auto",
    threads: int = 1,
    gpu: Callable[[], AbstractContextManager[str]] = lambda: nullcontext("cuda"),
) -> StoredFlow:
    """Flow of a stored RGB video, from its decoded pictures: one flow picture less than there are frames.

    Args:
        rgb: the bytes of `KEY.rgb.mp4`.
        coding: variant, parameters and coding of the flow.
        backend: what computes it, see `flow.tvl1`.
        threads: pairs computed at a time.
        gpu: waits until a GPU is free for the next pictures and gives its name; while others have it, this clip's
            pictures are decoded and its flow is encoded. Only asked where the backend is "cuda".

    Raises:
        VideoError: corrupt.
    """
    parameters: dict[str, Any] = dict(coding.parameters)

    def fields() -> Iterator[np.ndarray]:
        # A few at a time, so that neither pictures nor floats of a long clip are all there at once.
        pictures = luma_pictures(rgb)
        waiting = list(islice(pictures, 1))
        while some := list(islice(pictures, FLOW_PAIRS_AT_A_TIME)):
            pictures_of_pairs, waiting = [*waiting, *some], some[-1:]
            with gpu() if backend == "cuda" else nullcontext("cuda") as device:
                found = tvl1(
                    pictures_of_pairs, TVL1Params(**parameters), backend=backend, device=device, threads=threads
                )
            yield from found

    content = encode_flow(
        fields(),
        bound_pixels=coding.bound_pixels,
        crf=coding.crf,
        group_of_pictures=coding.group_of_pictures,
        preset=coding.preset,
        tune=coding.tune,
    )
    pairs, height, width = stored_shape(content)
    return StoredFlow(content, pairs, width=width, height=height // 2)


def decode_luma(video: bytes) -> np.ndarray:
    """All of `luma_pictures` at once: [T, H, W] uint8. Raises as that does."""
    return np.stack(list(luma_pictures(video)))


def luma_pictures(video: bytes, numbers: Collection[int] | None = None) -> Iterator[np.ndarray]:
    """Luma of a stored RGB video stretched to full range: pictures [H, W] uint8 grey, 0 black, 255 white.

    This is the grey that flow is computed from: BT.601 luma is what OpenCV calls grey, without the way over RGB.
    Arguments and errors as of `yuv_pictures`.
    """
    stretch = np.clip(np.rint((np.arange(256) - 16.0) * (255 / 219)), 0, 255).astype(np.uint8)
    for luma, _, _ in yuv_pictures(video, numbers):
        yield stretch[luma]


def yuv_pictures(
    video: bytes, numbers: Collection[int] | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Y, U and V of pictures of a stored RGB video: views [H, W] and [H/2, W/2] uint8 of the decoder's memory.

    Args:
        video: the stored video.
        numbers: which pictures, each once, in the order of the video; all by default.

    Raises:
        VideoError: corrupt; or without one of the pictures.
    """
    first = None
    for frame in _decode(video, numbers):
        first = first or frame
        stored = (first.width, first.height, "yuv420p")
        full_range = frame.color_range == FULL_RANGE
        if (frame.width, frame.height, frame.format.name) != stored or full_range:
            found = f"{frame.width}x{frame.height} {frame.format.name}" + (", full range" if full_range else "")
            wanted = f"{first.width}x{first.height} yuv420p, limited range"
            raise VideoError("corrupt", f"a stored picture of {found}, not {wanted}")
        yield plane_of(frame, 0), plane_of(frame, 1), plane_of(frame, 2)


def decode_rgb(video: bytes) -> np.ndarray:
    """All of `rgb_pictures` at once: [T, H, W, 3] uint8. Raises as that does."""
    return np.stack(list(rgb_pictures(video)))


def rgb_pictures(video: bytes, numbers: Collection[int] | None = None) -> Iterator[np.ndarray]:
    """Pictures of a stored RGB video for an eye: [H, W, 3] uint8 each, by FFmpeg's conversion.

    The networks see those of `train.decode.network_input`, which differ by its rounding. Arguments and errors as of
    `yuv_pictures`.
    """
    for frame in _decode(video, numbers):
        yield frame.to_ndarray(format="rgb24")


def _decode(video: bytes, numbers: Collection[int] | None = None) -> Iterator[av.VideoFrame]:
    try:
        yield from decode_frames(video, numbers)
    except ValueError as error:
        raise VideoError("corrupt", f"stored {error}") from error


def stored_shape(content: bytes) -> tuple[int, int, int]:
    """Frames, height and width of a video just encoded, from its packets; zeros where ffmpeg wrote no picture."""
    if not content:
        return 0, 0, 0
    try:
        with av.open(io.BytesIO(content), "r", format="mp4") as container:
            if not container.streams.video:
                return 0, 0, 0
            stream = container.streams.video[0]
            frames = sum(1 for packet in container.demux(stream) if packet.size)
            return frames, stream.height, stream.width
    except av.error.FFmpegError as error:
        raise RuntimeError(f"ffmpeg ended well and left a broken file of {len(content)} bytes: {error}") from error


def _opened(path: Path | str) -> dict[str, Any]:
    """FFmpeg's options that keep it to its input: a file, or a URL on this machine, whatever proxy is set."""
    # One decoding thread: what a damaged stream decodes to and how much memory that takes do not depend on the machine.
    always = {"format_whitelist": CONTAINERS, "threads": 1}
    if isinstance(path, Path):
        return {"protocol_whitelist": "file", **always}
    return {"protocol_whitelist": "http,tcp", "http_proxy": "", "recv_buffer_size": 32768, **always}


def _as_words(options: dict[str, Any]) -> list[str]:
    return [word for name, value in options.items() for word in (f"-{name}", str(value))]


def _run_tool(arguments: list[str], path: Path | str, deadline_seconds: float, reason: str) -> tuple[bytes, str]:
    """Run ffmpeg or ffprobe on a video, within bounds; `reason` is what its failure means."""
    try:
        return run_child(
            arguments,
            deadline_seconds=deadline_seconds,
            memory_bytes=MAXIMUM_TOOL_BYTES,
            file_bytes=MAXIMUM_STORED_BYTES,
        )
    except ChildTimeout as error:
        raise VideoError("timeout", _without_path(str(error), path)) from error
    except ChildKilled as error:
        raise VideoError("killed", str(error)) from error
    except ChildTooLarge as error:
        raise VideoError("too-large", _without_path(str(error), path)) from error
    except ChildError as error:
        raise VideoError(reason, _without_path(str(error), path)) from error


def _file_url(path: Path | str) -> str:
    """A path as FFmpeg must be given it: whatever the name starts with or holds, it is a file's name."""
    return f"file:{path}" if isinstance(path, Path) else path


def _without_path(message: str, path: Path | str) -> str:
    """The raw message without the scratch folder or the server, which change from run to run."""
    return message.replace(str(path).removesuffix(Path(path).name), "").replace("file:", "")


def _ratio(text: str) -> Fraction | None:
    """FFmpeg's way to write a ratio; None where it says that it does not know."""
    if not RATIO.fullmatch(text):
        return None
    return Fraction(text)
