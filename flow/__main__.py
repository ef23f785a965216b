"""`python -m flow VIDEO -o OUT`: TV-L1 flow of a video, for those who want nothing else."""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import av
import click
import cv2
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flow.coding import check_bound
from flow.estimate import BACKENDS, CUDA, BackendUnavailable, fastest_backend, tvl1
from flow.files import FILE_WRITERS, FOLDER_WRITERS, Pairs, Settings, Writer
from flow.parameters import MINIMUM_SIDE_PIXELS, VARIANTS, TVL1Params

PLAIN_SECONDS = 15.0
GPU_PAIRS = 64  # at a time; more frames than that would take much memory
LARGEST_SIDE_PIXELS = 4320
OTHER_ENDINGS = {".flo", ".jpg", ".jpeg", ".png", ".npz", ".gif", ".avi", ".mkv", ".mov", ".webm"}


class Frame(NamedTuple):
    """A frame to look at, [H, W, 3] uint8 RGB, and the grey that flow is computed from, [H, W] uint8."""

    rgb: np.ndarray
    grey: np.ndarray


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("video", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="What to write; must not exist.")
@click.option(
    "--format",
    "form",
    type=click.Choice(sorted(FOLDER_WRITERS)),
    help="Of the files in a folder: float .flo (default), 8-bit JPEG pairs, or pictures to look at.",
)
@click.option(
    "--short-side",
    type=click.IntRange(MINIMUM_SIDE_PIXELS, LARGEST_SIDE_PIXELS),
    help="Resize the frames first, to the shape they are shown in; otherwise their pixels are taken as they are.",
)
@click.option(
    "--bound",
    type=float,
    default=20.0,
    show_default=True,
    help="The motion in pixels that the largest 8-bit code, or the full colour, stands for.",
)
@click.option(
    "--variant", type=click.Choice(list(VARIANTS)), default="tvl1", show_default=True, help="tvl1-flat is faster."
)
@click.option("--backend", type=click.Choice(["auto", *BACKENDS]), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="Pairs at a time; by default one a core.")
def main(
    video: Path,
    output: Path,
    form: str | None,
    short_side: int | None,
    bound: float,
    variant: str,
    backend: str,
    threads: int | None,
) -> None:
    """Compute the TV-L1 flow of VIDEO.

    \b
    OUT.npy         one array [N, H, W, 2] of float32 pixels
    OUT.flow.mp4    8-bit codes of ±bound, x over y, H.264, in the form that kinetics-prep stores
    OUT.mp4         a video to look at: frames beside their flow in colours, fully saturated at the bound
    OUT             a folder of files, see --format
    """  # noqa: D301 — click reads the backspace as "keep these lines as they are"
    try:
        writer = _writer(output, form)
        check_bound(bound)
        if output.exists():
            raise ValueError(f"{output} exists already")
        count = sum(1 for _ in _frames(video, short_side)) - 1
        if count < 1:
            raise ValueError(f"{video}: {count + 1} frame: flow needs two or more")
        if backend == "auto":
            backend = fastest_backend()
        pairs = _pairs(_frames(video, short_side), VARIANTS[variant], backend, threads or os.cpu_count() or 1)
        output.parent.mkdir(parents=True, exist_ok=True)
        # Beside the output, so that it is renamed on one disk. SIGTERM ends the block as Ctrl-C does.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".flow-") as folder:
            unfinished = Path(folder) / output.name
            if writer in FOLDER_WRITERS.values():
                unfinished.mkdir()
            _write(writer, unfinished, pairs, count, Settings(bound, _frame_rate(video)))
            if output.exists():
                raise ValueError(f"{output} has appeared meanwhile")
            unfinished.rename(output)
    except (ValueError, OSError, MemoryError, BackendUnavailable, av.error.FFmpegError) as error:
        raise click.ClickException(str(error)) from error


def _writer(output: Path, form: str | None) -> Writer:
    """By the file's ending, or for a folder by its form.

    Raises:
        ValueError: an ending that nothing is written for, or a form where there is no folder.
    """
    name = output.name.lower()
    for end, writer in FILE_WRITERS.items():
        if name.endswith(end):
            if form is not None:
                raise ValueError(f"--format {form} is for folders; {output} is one file")
            return writer
    if Path(name).suffix in OTHER_ENDINGS:
        raise ValueError(f"{output}: one file ends in {', '.join(FILE_WRITERS)}; any other name is a folder's")
    return FOLDER_WRITERS[form or "flo"]


def _open(video: Path) -> av.container.InputContainer:
    return av.open(f"file:{video}")  # a name with a colon is no protocol


def _frame_rate(video: Path) -> Fraction:
    with _open(video) as container:
        return container.streams.video[0].average_rate or Fraction(25)


def _frames(video: Path, short_side: int | None) -> Iterator[Frame]:
    """The frames of a video, turned upright, and with `short_side` in the shape they are shown in; all of one size."""
    with _open(video) as container:
        if not container.streams.video:
            raise ValueError(f"{video}: no video stream")
        first = None
        for number, frame in enumerate(container.decode(video=0)):
            turns = round(frame.rotation / 90)
            rgb, grey = (np.rot90(frame.to_ndarray(format=form), turns) for form in ("rgb24", "gray"))
            if short_side is not None:
                pixel = container.streams.video[0].sample_aspect_ratio or Fraction(1)
                height, width = frame.height, float(frame.width * pixel)
                height, width = (width, height) if turns % 2 else (height, width)
                share = short_side / min(height, width)
                size = max(short_side, round(share * width)), max(short_side, round(share * height))
                rgb, grey = (cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for picture in (rgb, grey))
            first = grey.shape if first is None else first
            if grey.shape != first:
                raise ValueError(f"{video}: frame {number} is {grey.shape}, those before it {first}")
            yield Frame(rgb, grey)


def _pairs(frames: Iterator[Frame], params: TVL1Params, backend: str, threads: int) -> Pairs:
    """Frames with the flow to the next one, computed as many at a time as there are threads, or as a GPU wants."""
    waiting: list[Frame] = []
    at_a_time = GPU_PAIRS if backend == CUDA else threads
    while True:
        waiting += islice(frames, at_a_time + 1 - len(waiting))
        if len(waiting) < 2:
            return
        grey = np.stack([frame.grey for frame in waiting])
        flow = tvl1(grey, params, backend=backend, threads=threads)
        yield from zip((frame.rgb for frame in waiting), flow, strict=False)
        waiting = waiting[-1:]


def _write(writer: Writer, target: Path, pairs: Pairs, count: int, settings: Settings) -> None:
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("pairs  {task.fields[rate]}"), TimeRemainingColumn())
    started = said = time.monotonic()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=count, rate="")

        def counted() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            nonlocal said
            for number, pair in enumerate(pairs, start=1):
                yield pair
                now = time.monotonic()
                rate = f"{number / (now - started):.1f} pairs/s"
                progress.update(task, advance=1, rate=rate)
                if not console.is_terminal and (now - said >= PLAIN_SECONDS or number == count):
                    said = now
                    print(f"{number}/{count} pairs  {rate}", file=sys.stderr, flush=True)

        writer(target, counted(), count, settings)


if __name__ == "__main__":
    main(prog_name="python -m flow")
