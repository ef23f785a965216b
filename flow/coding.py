"""Flow as 8-bit video: code 128 is zero, ±`bound_pixels` are codes 255 and 1; x over y in H.264 grey, full range.

The default rate factor is where more bytes stop paying: on real clips, twice the size no longer halves the error, and
the error is that which coding the RGB first makes anyway. Psychovisual tuning and adaptive quantisation are off: they
spend bits on what an eye sees, and a fifth to a third less is enough for the same error. Factor 0 is lossless.

A limited-range tag anywhere on the way would quietly squeeze the codes, so the stream is monochrome (4:0:0), tagged
full range, and read from the luma plane without any conversion.
"""

import io
from collections.abc import Collection, Iterable, Iterator
from fractions import Fraction
from itertools import chain

import av
import numpy as np

from flow.frames import decode_frames, plane_of

ZERO_CODE = 128
LARGEST_CODE = 255
FULL_RANGE = av.video.reformatter.ColorRange.JPEG
STEPS = LARGEST_CODE - ZERO_CODE
SMALLEST_BOUND_PIXELS, LARGEST_BOUND_PIXELS = 1e-3, 1e6


def quantise(flow: np.ndarray, bound_pixels: float = 20.0) -> np.ndarray:
    """Flow in pixels to codes 1…255, clipped at ±bound: `128 + round(flow · 127 / bound)`.

    Args:
        flow: float array of any shape, finite.
        bound_pixels: the motion that the largest code stands for.

    Returns:
        uint8 array of the same shape. Negating the flow mirrors the code about 128.

    Raises:
        ValueError: an array that is not floating-point, or one that holds NaN or infinity; a bound that is none.
    """
    check_bound(bound_pixels)
    if not np.issubdtype(flow.dtype, np.floating):
        raise ValueError(f"flow must be floating-point pixels, not {flow.dtype}")
    if not np.isfinite(flow).all():
        raise ValueError("flow holds NaN or infinity")
    flow = flow.astype(np.promote_types(flow.dtype, np.float32), copy=False)
    steps = np.rint(np.clip(flow, -bound_pixels, bound_pixels) * (STEPS / bound_pixels))
    return np.asarray(steps + ZERO_CODE, np.uint8)


def check_bound(bound_pixels: float) -> None:
    """Raise ValueError for a bound that is no positive number of pixels."""
    if not SMALLEST_BOUND_PIXELS <= bound_pixels <= LARGEST_BOUND_PIXELS:
        limits = f"from {SMALLEST_BOUND_PIXELS:g} to {LARGEST_BOUND_PIXELS:g}"
        raise ValueError(f"bound of {bound_pixels} pixels: must be {limits}")


def dequantise(codes: np.ndarray, bound_pixels: float = 20.0) -> np.ndarray:
    """Codes (uint8) back to float32 pixels; 128 gives exactly 0."""
    return (codes.astype(np.float32) - ZERO_CODE) * np.float32(bound_pixels / STEPS)


def encode_flow(
    flow: Iterable[np.ndarray],
    *,
    bound_pixels: float = 20.0,
    frame_rate: int | Fraction = 25,
    crf: int = 24,
    group_of_pictures: int = 16,
    preset: str = "medium",
    tune: str = "fastdecode",
) -> bytes:
    """Flow as an MP4 file of N grey pictures of 2H × W, x over y.

    The same flow gives the same bytes on one build of PyAV: one x264 thread, CPU-independent code, bit-exact muxing.

    Args:
        flow: N fields of [H, W, 2] float pixels (x, y), or one array of [N, H, W, 2]; taken one at a time.
        bound_pixels: the motion that the largest code stands for.
        frame_rate: pictures a second.
        crf: x264's rate factor; 0 keeps every code.
        group_of_pictures: pictures from one keyframe to the next.
        preset: x264's preset.
        tune: x264's tuning.

    Raises:
        ValueError: another shape, or odd sizes.
    """
    fields = iter(flow)
    first = next(fields, None)
    if first is None or first.ndim != 3 or first.shape[2] != 2:
        raise ValueError(f"flow must be N ≥ 1 fields of [H, W, 2], not of {'none' if first is None else first.shape}")
    height, width, _ = first.shape
    check_bound(bound_pixels)
    if height % 2 or width % 2 or not height or not width:
        raise ValueError(f"flow of {width}x{height}: stored sizes are even")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=frame_rate)
        stream.width, stream.height, stream.pix_fmt = width, 2 * height, "gray"
        stream.time_base = 1 / Fraction(frame_rate)
        stream.codec_context.color_range = FULL_RANGE
        stream.codec_context.options = {
            "crf": str(crf),
            "preset": preset,
            "tune": tune,
            "threads": "1",
            "x264-params": f"keyint={group_of_pictures}:min-keyint=1:scenecut=0:cpu-independent=1:fullrange=on"
            ":psy=0:aq-mode=0",
        }
        for index, field in enumerate(chain([first], fields)):
            if field.shape != first.shape:
                raise ValueError(f"flow field {index} is {field.shape}, those before it {first.shape}")
            picture = quantise(field, bound_pixels).transpose(2, 0, 1).reshape(2 * height, width)
            frame = av.VideoFrame.from_ndarray(picture, format="gray")
            frame.color_range = FULL_RANGE
            frame.pts, frame.time_base = index, 1 / Fraction(frame_rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def decode_flow_codes(video: bytes) -> np.ndarray:
    """The codes of a stored flow video: [N, H, W, 2] uint8. Raises as `flow_pictures` does."""
    return np.stack([np.stack(components, axis=-1) for components in flow_pictures(video)])


def flow_pictures(video: bytes, numbers: Collection[int] | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Codes of x and of y of each picture: views [H, W] uint8 of the decoder's memory.

    H.264 has no checksums: damage that still decodes gives other codes. A dataset's checksums notice it.

    Args:
        video: the stored video.
        numbers: which pictures, each once; all by default.

    Raises:
        ValueError: not a grey 8-bit full-range video of x over y, damaged, or without one of the pictures.
    """
    for place, frame in enumerate(decode_frames(video, numbers)):
        if frame.color_range != FULL_RANGE or frame.height % 2 or not (place or _is_grey(frame)):
            raise ValueError(
                f"flow video of {frame.format.name}, range {frame.color_range}, height {frame.height}: "
                "want x over y, grey, 8 bits, full range"
            )
        # Plane 0 as it is: FFmpeg's decoder shows 4:0:0 as 4:2:0 with empty chroma.
        x_over_y = plane_of(frame, 0)
        yield x_over_y[: frame.height // 2], x_over_y[frame.height // 2 :]


def _is_grey(frame: av.VideoFrame) -> bool:
    """8 bits, and no colour: FFmpeg's decoder shows 4:0:0 as 4:2:0 whose chroma is 128 throughout."""
    if any(component.bits != 8 for component in frame.format.components):
        return False
    return all((plane_of(frame, number) == ZERO_CODE).all() for number in range(1, len(frame.planes)))
