"""Predictions on an HTML page that needs nothing from outside: frames, flow in colour, curves of the classes."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import cv2
import numpy as np

from flow import colour_legend, film_strip, tvl1
from manifests.clip import printable
from manifests.files import write_file
from manifests.page import Html, Number, figure, page, percent, table, unbroken
from manifests.sample import FRAME_RATE
from model import Checkpoint, Stream
from pipeline.video import VideoError, luma_pictures, rgb_pictures
from train.over_time import OverTime, stretches
from train.picture_size import PictureSize
from train.pictures import FLOW_SCALE_PIXELS, LEGEND_PIXELS, encoded
from train.predict import Prediction
from train.report import CURVES, line_chart, thinned
from train.stream import Inputs
from train.videos import StoredStream

COLUMNS = 8
COLUMN_PIXELS = 160
STRETCHES = 200  # of a video, listed


def write_predictions(
    path: Path,
    sections: Sequence[Html],
    predicted: int,
    failed: Sequence[tuple[str, VideoError]],
    checkpoints: Mapping[Inputs, Checkpoint],
    size: PictureSize,
) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        sections: of videos, of `video_section`.
        predicted: how many videos there were, of which the sections may show only the first.
        failed: names of further ones, and what is wrong with each.
        checkpoints: of the networks, by what they see.
        size: of the pictures that they were shown.

    Raises:
        OSError: it cannot be written.
    """
    number = predicted + len(failed)
    parts = list(sections)
    if predicted > len(sections):
        more = predicted - len(sections)
        parts.append(Html(f"<p>And {more:,} more video{'s' * (more != 1)}.</p>"))
    if failed:
        rows = [(printable(name), error.reason, printable(error.message[-300:])) for name, error in failed]
        parts.append(Html(f"<h2>Not predicted</h2>{table(('Video', 'Reason', 'Message'), rows)}"))
    networks = [
        (inputs, checkpoint.architecture, checkpoint.format, printable(name), unbroken(sha256))
        for inputs, checkpoint in checkpoints.items()
        for name, sha256 in checkpoint.sha256.items()
    ]
    parts.append(Html(f"<h2>Networks</h2>{table(('Sees', 'Architecture', 'Format', 'File', 'SHA-256'), networks)}"))
    parts.append(Html(f"<p>Shown: squares of {size.crop} pixels from pictures of short side {size.short_side}.</p>"))
    wheel = encoded(".png", colour_legend(LEGEND_PIXELS))
    words = f"Flow: hue is direction, saturation is speed; the rim is {FLOW_SCALE_PIXELS:g} pixels a frame."
    parts.append(figure(wheel, "image/png", LEGEND_PIXELS, LEGEND_PIXELS, "Colour wheel", words))
    write_file(path, page(f"Classes over time in {number:,} video{'s' * (number != 1)}", parts).encode())


def video_section(name: str, found: Prediction, stored: Mapping[Stream, StoredStream], labels: Sequence[str]) -> Html:
    """A video on the page: its likeliest classes, pictures with their flow, and the classes over time.

    Args:
        name: of the video.
        found: what networks say of it, over time, too.
        stored: it in its stored form.
        labels: of all classes.

    Raises:
        VideoError: corrupt.
    """
    over_time = found.over_time
    assert over_time is not None
    span = f"{found.start_seconds:.2f} to {found.end_seconds:.2f} s"
    best = table(
        ("Whole video", "Probability"), [(place["label"], percent(place["probability"])) for place in found.top]
    )
    found_stretches = stretches(over_time, found.end_seconds)
    rows = [
        (
            Number(f"{s.start_seconds:.2f}"),
            Number(f"{s.end_seconds:.2f}"),
            labels[s.class_index],
            percent(s.probability),
        )
        for s in found_stretches[:STRETCHES]
    ]
    more = f"<p>And {len(found_stretches) - STRETCHES:,} more.</p>" if len(found_stretches) > STRETCHES else ""
    return Html(
        f"<h2>{escape(printable(name))}</h2><p>{span}, {found.frames:,} frames at {FRAME_RATE} a second</p>"
        f"{best}{_strip(name, found, stored['rgb'])}{_curves(found, over_time, labels)}"
        f"{table(('From s', 'To s', 'Likeliest', 'Mean probability'), rows)}{more}"
    )


def _strip(name: str, found: Prediction, stored: StoredStream) -> Html:
    """Frames spread over the video, the flow from each below."""
    wanted = ((np.arange(COLUMNS) + 0.5) / COLUMNS * stored.pictures).astype(int)
    numbers = np.unique(wanted.clip(max=stored.pictures - 2)).tolist()
    pictures, fields = [], []
    for number in numbers:
        (picture,) = rgb_pictures(stored.content, (number,))
        # As the dataset's flow before it is coded; only of the pictures that are shown.
        (field,) = tvl1(list(luma_pictures(stored.content, (number, number + 1))))
        size = (COLUMN_PIXELS, max(round(picture.shape[0] * COLUMN_PIXELS / picture.shape[1]), 1))
        pictures.append(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))
        fields.append(cv2.resize(field, size, interpolation=cv2.INTER_AREA))
    strip = film_strip(np.stack(pictures), np.stack(fields), FLOW_SCALE_PIXELS)
    times = ", ".join(f"{found.start_seconds + number / FRAME_RATE:.2f}" for number in numbers)
    caption = f"Frames at {times} s, and the flow from each."
    return figure(encoded(".jpg", strip), "image/jpeg", strip.shape[1], strip.shape[0], printable(name), caption)


def _curves(found: Prediction, over_time: OverTime, labels: Sequence[str]) -> str:
    """The classes over time that are likeliest at some time: as many as of the whole video."""
    since = (over_time.seconds - found.start_seconds).tolist()
    curves = {
        labels[index]: thinned(since, over_time.probabilities[:, index].tolist())
        for index in over_time.leading(min(len(found.top), CURVES))
    }
    begin = f" after {found.start_seconds:g} s" if found.start_seconds else ""
    title = f"Probability in a window of {over_time.window_seconds:g} s"
    return line_chart(title, f"seconds{begin}", curves, highest=1.0)
