"""The command `i3d-predict`: what happens in files, in all videos of folders, and at URLs."""

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click

from manifests.clip import check_times, printable
from manifests.page import Html
from manifests.sample import FRAME_RATE
from model import I3D, CheckpointError, Stream
from model.chunks import ENDPOINTS
from model.inception import MINIMUM_SIDE
from pipeline.video import VideoError
from train.evaluate import Streams, load_streams
from train.options import (
    BOTH_OPTION,
    CONTEXT,
    FLOW_OPTION,
    PRECISION_OPTION,
    RGB_OPTION,
    TESTED_CROP_OPTION,
    FiniteRange,
    check_outputs,
)
from train.over_time import rounded, stretches
from train.picture_size import RELEASED_SHORT_SIDE, PictureSize, size_to_show
from train.predict import Prediction, predict, write_features
from train.predict_page import video_section, write_predictions
from train.predict_video import write_video
from train.progress import shown
from train.run import Precision
from train.samplers import I3D_FRAMES
from train.signals import sigterm_ends
from train.stream import Inputs
from train.videos import MAXIMUM_SECONDS, StoredStream, Video, ahead, find_videos, name_of, prepare, workers_for

WINDOW_SECONDS = I3D_FRAMES / FRAME_RATE
VIDEOS_SHOWN = 100  # on a page


@dataclass(frozen=True)
class _Options:
    """What is wanted of each video, and where it goes."""

    start: float
    end: float | None
    top: int
    as_json: bool
    over_time: float | None
    page: Path | None
    video: Path | None
    features: Path | None
    endpoint: str | None
    sections: list[Html] = field(default_factory=list)  # of the page

    @property
    def window_seconds(self) -> float | None:
        drawn = self.page is not None or self.video is not None
        return self.over_time or (WINDOW_SECONDS if drawn else None)

    @property
    def files(self) -> dict[str, Path]:
        """The files that are written, by their options."""
        named = {"--page": self.page, "--video": self.video, "--features": self.features}
        return {option: path.resolve() for option, path in named.items() if path is not None}


@click.command("i3d-predict", context_settings=CONTEXT)
@click.argument("what", nargs=-1, required=True)
@RGB_OPTION
@FLOW_OPTION
@BOTH_OPTION
@click.option("--start", type=FiniteRange(min=0), default=0.0, help="Seconds; by default the beginning.")
@click.option("--end", type=FiniteRange(min=0), help="Seconds; by default the end.")
@TESTED_CROP_OPTION
@click.option(
    "--short-side",
    type=click.IntRange(min=MINIMUM_SIDE),
    help="Pixels that the shorter side of pictures is brought to.  "
    f"[default: that of the data the networks were trained on, else {RELEASED_SHORT_SIDE}]",
)
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="How many classes to name.")
@click.option("--json", "as_json", is_flag=True, help="For machines: a line a video, in order.")
@click.option(
    "--over-time",
    type=FiniteRange(min=1 / FRAME_RATE, max=MAXIMUM_SECONDS),
    metavar="SECONDS",
    help="Classes over time, too: of a window of this length around every eighth frame.  "
    f"[default with --page or --video: {WINDOW_SECONDS:g}]",
)
@click.option(
    "--page",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write an HTML page: frames, flow in colour, curves of the classes over time.",
)
@click.option(
    "--video",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write an MP4 file: frames, flow beside them, the classes over time below. Of one video.",
)
@click.option(
    "--features",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write what I3D sees over time to this .npz file: rgb_features, rgb_seconds, and of flow the same. "
    "Of one video.",
)
@click.option(
    "--endpoint",
    type=click.Choice(ENDPOINTS),
    help=f"Of --features: whose activation, averaged over the picture.  [default: {I3D.ENDPOINTS[-1]}]",
)
@PRECISION_OPTION
@click.pass_context
@sigterm_ends()
def predict_command(
    context: click.Context,
    /,
    what: tuple[str, ...],
    rgb: Path | None,
    flow: Path | None,
    both: Path | None,
    crop: int | None,
    short_side: int | None,
    precision: Precision,
    **options: Any,
) -> None:
    """Say what happens in video files, in all videos of a folder, or at http:// and https:// URLs.

    A URL is a video's, or that of a page with one video that yt-dlp can read. The next videos are prepared while the
    networks see one, in pictures as large as they were trained on; networks that disagree want --crop or --short-side.
    What is wrong with a video is said in its place, and the others go on; the exit status is 1 then.

    Example: i3d-predict clip.mp4 --rgb rgb_scratch/model.ckpt --start 10 --end 20 --page clip.html
    """
    wanted = _Options(**options)
    try:
        videos = find_videos(what)
        given: dict[Inputs, Path | None] = {"rgb": rgb, "flow": flow, "both": both}
        _check(wanted, videos, given)
        streams = load_streams(given, precision=precision)
        for network in streams.networks.values():
            if wanted.features is not None and not isinstance(network, I3D):
                raise ValueError(f"--features are of i3d, this network is {network.architecture}")
        size = size_to_show(streams.checkpoints, crop, short_side)
        failed: list[tuple[str, VideoError]] = []
        predictions = _predictions(videos, streams, size, wanted)
        if not sys.stdout.isatty():  # where the answers would show how far it is
            predictions = shown(predictions, "videos", len(videos), lambda some: isinstance(some[1], VideoError))
        for name, told in predictions:
            if isinstance(told, VideoError):
                failed.append((name, told))
                _say_error(name, told, as_json=wanted.as_json)
            elif wanted.as_json:
                told_as_json = {"video": name, **size._asdict(), **_as_json(told, streams)}
                click.echo(json.dumps(told_as_json, allow_nan=False))
            else:
                _say(name if len(videos) > 1 else None, told, streams)
        if wanted.page is not None:
            predicted = len(videos) - len(failed)
            write_predictions(wanted.page.resolve(), wanted.sections, predicted, failed, streams.checkpoints, size)
    except (CheckpointError, ValueError, OSError) as error:
        raise click.ClickException(printable(str(error))) from error
    if failed:
        context.exit(1)


def _check(wanted: _Options, videos: Sequence[Video], given: Mapping[Inputs, Path | None]) -> None:
    """Raise ValueError or OSError, before any work, for what cannot be had."""
    check_times(wanted.start, wanted.end)
    if wanted.endpoint is not None and wanted.features is None:
        raise ValueError(f"--endpoint {wanted.endpoint} wants --features: name a file for them")
    for option in ("--video", "--features"):
        if option in wanted.files and len(videos) > 1:
            raise ValueError(f"{option} is of one video, {len(videos)} are given")
    inputs = {video.resolve() for video in videos if isinstance(video, Path)}
    for option, path in wanted.files.items():
        if path in inputs:
            raise ValueError(f"{option} {path}: that is one of the videos, which would be lost")
    check_outputs(wanted.files, {f"--{name}": path for name, path in given.items()})


def _predictions(
    videos: Sequence[Video], streams: Streams, size: PictureSize, wanted: _Options
) -> Iterator[tuple[str, Prediction | VideoError]]:
    """What is said of each video; files of it are written."""
    workers, threads = workers_for(len(videos))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        work = partial(
            prepare,
            scratch=Path(scratch),
            with_flow="flow" in streams.seen or wanted.video is not None,
            start_seconds=wanted.start,
            end_seconds=wanted.end,
            short_side=size.short_side,
            threads=threads,
        )
        for video, stored in ahead(videos, work, workers):
            name = name_of(video)
            if isinstance(stored, VideoError):
                yield name, stored
            else:
                yield name, _predicted(name, stored, streams, size.crop, wanted)


def _predicted(
    name: str, stored: Mapping[Stream, StoredStream], streams: Streams, crop: int, wanted: _Options
) -> Prediction | VideoError:
    endpoint = (wanted.endpoint or I3D.ENDPOINTS[-1]) if wanted.features is not None else None
    labels = streams.classes.labels
    try:
        found = predict(stored, streams, wanted.start, wanted.top, crop, endpoint, wanted.window_seconds)
        if wanted.page is not None and len(wanted.sections) < VIDEOS_SHOWN:
            wanted.sections.append(video_section(name, found, stored, labels))
        if wanted.video is not None:
            write_video(wanted.video.resolve(), found, stored, labels)
    except VideoError as error:
        return error
    if wanted.features is not None and endpoint is not None:
        write_features(wanted.features.resolve(), found.features, endpoint)
    return found


def _as_json(found: Prediction, streams: Streams) -> dict[str, Any]:
    told = {"start_seconds": found.start_seconds, "frames": found.frames, "top": found.top}
    if found.over_time is None:
        return told
    classes = [
        {
            "label": streams.classes.labels[index],
            "index": index,
            "probabilities": rounded(found.over_time.probabilities[:, index], 6),
        }
        for index in found.over_time.leading(len(found.top))
    ]
    seconds = rounded(found.over_time.seconds, 6)
    window_seconds = found.over_time.window_seconds
    return {**told, "over_time": {"window_seconds": window_seconds, "seconds": seconds, "classes": classes}}


def _say(name: str | None, found: Prediction, streams: Streams) -> None:
    if name is not None:
        click.echo(_line(name))
    for place in found.top:
        click.echo(f"{place['probability']:.4f}  {place['label']}")
    for stretch in stretches(found.over_time, found.end_seconds) if found.over_time else ():
        times = f"{stretch.start_seconds:8.2f} to {stretch.end_seconds:8.2f} s"
        click.echo(f"{times}  {stretch.probability:.4f}  {streams.classes.labels[stretch.class_index]}")


def _say_error(name: str, error: VideoError, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"video": name, "reason": error.reason, "message": error.message}))
    else:
        message = "\n".join(printable(str(error)).splitlines()[-3:])
        click.echo(f"Error: {_line(name)}: {message}", err=True)


def _line(name: str) -> str:
    """A name from a stranger on one line."""
    return printable(name).replace("\n", "\\n")
