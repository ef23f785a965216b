"""Pictures of a stored video by their numbers: a window costs its own groups of pictures, not the whole clip."""

import io
from collections.abc import Collection, Iterator
from fractions import Fraction
from itertools import count

import av
import numpy as np


def decode_frames(video: bytes, numbers: Collection[int] | None = None) -> Iterator[av.VideoFrame]:
    """Decode pictures of a stored video in their order, each once.

    Stored videos have a constant frame rate, so a picture's time gives its number.

    Args:
        video: the stored video.
        numbers: which pictures; the first is 0. All by default.

    Raises:
        ValueError: not a video, damaged, or without one of the pictures.
    """
    wanted = None if numbers is None else frozenset(numbers)
    due = count() if wanted is None else iter(sorted(wanted))
    number = next(due, None)
    if number is None or number < 0:
        raise ValueError(f"picture {number}: want at least one, and none before picture 0")
    try:
        with av.open(io.BytesIO(video), "r", format="mp4") as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            ticks = _ticks_per_picture(stream)
            for frame in _decoded(container, stream, ticks, wanted):
                found = _number(frame, ticks)
                if wanted is not None and found not in wanted:
                    continue  # decoded since others refer to it
                if found != number:
                    raise ValueError(f"video has picture {found} where number {number} was due")
                number = next(due, None)
                yield frame
    except (av.error.FFmpegError, IndexError) as error:
        raise ValueError(f"video cannot be decoded: {error}") from error
    if wanted is not None and number is not None:
        raise ValueError(f"video ends before picture {number}, which was wanted")
    if number == 0:
        raise ValueError("video holds no picture")


def plane_of(frame: av.VideoFrame, number: int) -> np.ndarray:
    """A plane of a picture: a view [H, W] uint8 of the decoder's memory."""
    plane = frame.planes[number]
    return np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]


def _decoded(
    container: av.container.InputContainer, stream: av.VideoStream, ticks: Fraction, wanted: frozenset[int] | None
) -> Iterator[av.VideoFrame]:
    """The wanted pictures, by default all, and those that they were coded from."""
    decoder = stream.codec_context
    if wanted is None:
        yield from container.decode(stream)
        return
    missing = len(wanted)
    for packet in _packets_from(container, stream, ticks, min(wanted)):
        if packet.size:
            is_wanted = _number(packet, ticks) in wanted
            missing -= is_wanted
            # The decoder leaves out a picture that no other refers to before it has decoded any of it.
            decoder.skip_frame = "DEFAULT" if is_wanted else "NONREF"
        yield from decoder.decode(packet)
        if not missing:
            yield from decoder.decode(None)  # what it holds back: pictures are decoded out of order
            return


def _packets_from(
    container: av.container.InputContainer, stream: av.VideoStream, ticks: Fraction, first: int
) -> Iterator[av.Packet]:
    """Packets from a keyframe at or before picture `first`."""
    for target in (first, 0):
        # Pictures are decoded out of order, so a seek by time may land on the keyframe behind the one wanted.
        if first:
            container.seek(int(target * ticks), stream=stream)
        packets = container.demux(stream)
        packet = next(packets)
        if not target or (packet.size and _number(packet, ticks) <= first):
            yield packet
            yield from packets
            return


def _ticks_per_picture(stream: av.VideoStream) -> Fraction:
    if not stream.average_rate or not stream.time_base:
        raise ValueError("video has no frame rate")
    return 1 / (Fraction(stream.average_rate) * Fraction(stream.time_base))


def _number(timed: av.VideoFrame | av.Packet, ticks: Fraction) -> int:
    if timed.pts is None:
        raise ValueError("video has a picture without a time")
    pts: int = timed.pts
    return (2 * pts * ticks.denominator + ticks.numerator) // (2 * ticks.numerator)  # rounded
