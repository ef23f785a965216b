"""Pictures of a stored video by their numbers: a window costs its own groups of pictures, not the whole clip."""

import io
from collections.abc import Iterator
from fractions import Fraction

import av


def decode_frames(video: bytes, start: int = 0, stop: int | None = None) -> Iterator[av.VideoFrame]:
    """Decode frames [start, stop) of a stored video, by default all of it; picture 0 is the first.

    Stored videos have a constant frame rate, so a picture's time gives its number.

    Raises:
        ValueError: not a video, damaged, or over before `stop`.
    """
    try:
        with av.open(io.BytesIO(video), "r", format="mp4") as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            expected = start
            for number, frame in _numbered_from(container, stream, start):
                if stop is not None and expected == stop:
                    break
                if number < start:
                    continue
                if number != expected:
                    raise ValueError(f"video has picture {number} where number {expected} was due")
                expected += 1
                yield frame
    except (av.error.FFmpegError, IndexError) as error:
        raise ValueError(f"video cannot be decoded: {error}") from error
    if stop is not None and expected < stop:
        raise ValueError(f"video ends before picture {expected}, pictures {start} to {stop - 1} were wanted")
    if expected == start and stop is None:
        raise ValueError("video holds no picture")


def _numbered_from(
    container: av.container.InputContainer, stream: av.VideoStream, start: int
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Numbered pictures from a keyframe at or before number `start`."""
    rate = stream.average_rate
    if not rate or not stream.time_base:
        raise ValueError("video has no frame rate")
    for target in (start, 0):
        if target:
            container.seek(int(target / rate / stream.time_base), stream=stream)
        elif start:
            # Pictures are decoded out of order, so a seek by time may land on the keyframe behind the one wanted.
            container.seek(0, stream=stream)
        frames = ((_number(frame, rate), frame) for frame in container.decode(stream))
        first = next(frames, None)
        if first is None:
            return
        if first[0] <= start or not target:
            yield first
            yield from frames
            return


def _number(frame: av.VideoFrame, rate: Fraction) -> int:
    if frame.pts is None or not frame.time_base:
        raise ValueError("video has a picture without a time")
    number: int = round(frame.pts * frame.time_base * rate)
    return number
