"""A video of a prediction: frames, the flow beside them, and the classes over time drawn in."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, repeat
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.reformatter import Colorspace

from flow import colour_code, colour_legend, dequantise, flow_pictures
from manifests.clip import printable
from manifests.files import complete_file
from manifests.sample import FRAME_RATE
from model import Stream
from pipeline.video import flow_coding, rgb_pictures
from train.over_time import STEP_FRAMES, OverTime
from train.pictures import FLOW_SCALE_PIXELS
from train.predict import Prediction
from train.report import COLOURS
from train.videos import StoredStream

SHORT_SIDE_PIXELS = 240  # smaller pictures are enlarged, so that there is room for words
CRF = 20
CURVES = len(COLOURS)
MARGIN, CHART_TOP, CHART_PIXELS, ROW_PIXELS, LEGEND_PIXELS = 12, 26, 96, 26, 44
ROWS_TOP = CHART_TOP + CHART_PIXELS + MARGIN
TEXT_PIXELS = 15
INK, FAINT, PAPER = (30, 30, 30), (215, 215, 215), 255


def write_video(path: Path, found: Prediction, stored: Mapping[Stream, StoredStream], labels: Sequence[str]) -> None:
    """Write an MP4 file (H.264, 25 frames a second): each frame, its flow in colour, the classes over time below.

    As many classes as the prediction names, up to `CURVES`.

    Args:
        path: the file; it appears when it is complete.
        found: what networks say of the video, over time, too.
        stored: the video and its flow in their stored form.
        labels: of all classes.

    Raises:
        VideoError, ValueError: corrupt.
        OSError: it cannot be written.
    """
    over_time = found.over_time
    assert over_time is not None
    leading = over_time.leading(min(len(found.top), CURVES))
    with complete_file(path) as file, av.open(file, "w", format="mp4") as container:
        stream, panel = None, np.empty(0)
        for number, picture in enumerate(_pictures(stored)):
            if stream is None:
                panel = _panel(picture.shape[1], found.frames, over_time, leading)
                stream = container.add_stream("libx264", rate=FRAME_RATE)
                stream.width, stream.height, stream.pix_fmt = picture.shape[1], len(picture) + len(panel), "yuv420p"
                stream.codec_context.options = {"crf": str(CRF)}
                stream.codec_context.colorspace = Colorspace.ITU601
            below = panel.copy()
            _draw_now(below, number, found, over_time, leading, labels)
            frame = av.VideoFrame.from_ndarray(np.concatenate([picture, below]), format="rgb24")
            container.mux(stream.encode(frame))
        assert stream is not None  # a stored video has pictures
        container.mux(stream.encode(None))


def _pictures(stored: Mapping[Stream, StoredStream]) -> Iterator[np.ndarray]:
    """Each frame, and beside it the flow from it in colour; the last frame has none."""
    codes = np.arange(256, dtype=np.uint8)
    field = dequantise(np.stack(np.meshgrid(codes, codes), axis=-1), flow_coding().bound_pixels)
    colours = colour_code(field, FLOW_SCALE_PIXELS)  # by codes of y and x: a look-up is quick
    legend = colour_legend(LEGEND_PIXELS)
    y, x = np.mgrid[-1 : 1 : LEGEND_PIXELS * 1j, -1 : 1 : LEGEND_PIXELS * 1j]
    disc = np.hypot(x, y) <= 1
    flows = chain((colours[y, x] for x, y in flow_pictures(stored["flow"].content)), repeat(None))
    for frame, flow in zip(rgb_pictures(stored["rgb"].content), flows, strict=False):
        height, width, _ = frame.shape
        scale = max(SHORT_SIDE_PIXELS / min(height, width), 1.0)
        size = round(width * scale / 2) * 2, round(height * scale / 2) * 2
        beside = np.full_like(frame, PAPER) if flow is None else flow
        pair = [cv2.resize(part, size, interpolation=cv2.INTER_LINEAR) for part in (frame, beside)]
        pair[1][-LEGEND_PIXELS:, -LEGEND_PIXELS:][disc] = legend[disc]
        yield np.concatenate(pair, axis=1)


def _panel(width: int, frames: int, over_time: OverTime, leading: Sequence[int]) -> np.ndarray:
    """What stands below all frames: curves over the whole video. [rows, width, 3] uint8."""
    panel = np.full((ROWS_TOP + ROW_PIXELS * len(leading) + MARGIN // 2 * 2, width, 3), PAPER, np.uint8)
    for share in (0.0, 0.5, 1.0):
        level = _level(share)
        cv2.line(panel, (MARGIN, level), (width - MARGIN, level), FAINT, 1)
    places = [_place(step * STEP_FRAMES, frames, width) for step in range(len(over_time.seconds))]
    for colour, index in reversed(list(zip(_colours(), leading, strict=False))):
        levels = [_level(float(share)) for share in over_time.probabilities[:, index]]
        # The last value holds up to the end.
        points = np.array([*zip(places, levels, strict=True), (width - MARGIN, levels[-1])], np.int32)
        cv2.polylines(panel, [points], isClosed=False, color=colour, thickness=2, lineType=cv2.LINE_AA)
    return panel


def _draw_now(
    panel: np.ndarray,
    number: int,
    found: Prediction,
    over_time: OverTime,
    leading: Sequence[int],
    labels: Sequence[str],
) -> None:
    """Draw where frame `number` is, and how likely the classes are there."""
    width = panel.shape[1]
    now = min(round(number / STEP_FRAMES), len(over_time.seconds) - 1)
    place = _place(number, found.frames, width)
    cv2.line(panel, (place, CHART_TOP - 4), (place, _level(0.0)), INK, 1)
    time = f"{found.start_seconds + number / FRAME_RATE:.2f} s"
    half = _text_width(time) // 2
    _write(panel, time, min(max(place - half, MARGIN), width - MARGIN - 2 * half), CHART_TOP - 8)
    for row, (colour, index) in enumerate(zip(_colours(), leading, strict=False)):
        top = ROWS_TOP + row * ROW_PIXELS
        share = float(over_time.probabilities[now, index])
        words = f"{share:.0%}"
        room = width - 3 * MARGIN - _text_width("100%")
        tinted = tuple(round(PAPER - (PAPER - part) * 0.35) for part in colour)
        cv2.rectangle(panel, (MARGIN, top), (MARGIN + 5, top + ROW_PIXELS - 5), colour, cv2.FILLED)
        cv2.rectangle(
            panel, (MARGIN + 5, top), (MARGIN + 5 + round((room - 5) * share), top + ROW_PIXELS - 5), tinted, cv2.FILLED
        )
        _write(panel, _fitted(printable(labels[index]), room - 16), MARGIN + 12, top + ROW_PIXELS - 10)
        _write(panel, words, width - MARGIN - _text_width(words), top + ROW_PIXELS - 10)


def _level(share: float) -> int:
    """Row of a probability."""
    return CHART_TOP + round((1 - share) * CHART_PIXELS)


def _place(number: int, frames: int, width: int) -> int:
    """Column of a frame."""
    return MARGIN + round((width - 2 * MARGIN) * number / frames)


def _colours() -> list[tuple[int, int, int]]:
    return [(int(c[1:3], 16), int(c[3:5], 16), int(c[5:7], 16)) for c in COLOURS]


def _write(panel: np.ndarray, text: str, left: int, baseline: int) -> None:
    cv2.putText(panel, text, (left, baseline), INK, cv2.FontFace("sans"), TEXT_PIXELS, 400)


def _text_width(text: str) -> int:
    return int(cv2.getTextSize((10_000, 100), text, (0, 0), cv2.FontFace("sans"), TEXT_PIXELS, 400)[2])


def _fitted(text: str, pixels: int) -> str:
    """As much of a text as has room."""
    if _text_width(text) <= pixels:
        return text
    while text and _text_width(text + "…") > pixels:
        text = text[:-1]
    return text + "…"
