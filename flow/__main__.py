"""`python -m flow VIDEO -o OUT`: TV-L1 flow of a video, for those who want nothing else."""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import av
import click
import cv2
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flow.estimate import BACKENDS, CUDA, BackendUnavailable, fastest_backend, tvl1
from flow.files import FILE_WRITERS, FOLDER_WRITERS, Writer
from flow.parameters import MINIMUM_SIDE_PIXELS, VARIANTS, TVL1Params

PLAIN_SECONDS = 15.0
GPU_PAIRS = 64  # at a time; more frames than that would take much memory


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("video", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="What to write; must not exist.")
@click.option(
    "--format",
    "form",
    type=click.Choice(sorted(FOLDER_WRITERS)),
    default="flo",
    show_default=True,
    help="Of the files in a folder: float .flo, 8-bit JPEG pairs, or pictures to look at.",
)
@click.option("--short-side", type=click.IntRange(min=MINIMUM_SIDE_PIXELS), help="Resize the frames first.")
@click.option(
    "--bound", type=click.FloatRange(min=0, min_open=True), default=20.0, show_default=True, help="In pixels."
)
@click.option(
    "--variant", type=click.Choice(list(VARIANTS)), default="tvl1", show_default=True, help="tvl1-flat is faster."
)
@click.option("--backend", type=click.Choice(["auto", *BACKENDS]), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="Pairs at a time; by default one a core.")
def main(
    video: Path,
    output: Path,
    form: str,
    short_side: int | None,
    bound: float,
    variant: str,
    backend: str,
    threads: int | None,
) -> None:
    """Compute the TV-L1 flow of VIDEO.

    \b
    OUT.npy         one array [N, H, W, 2] of float32 pixels
    OUT.flow.mp4    8-bit codes of ±bound, x over y, H.264, as kinetics-prep stores them
    OUT.mp4         a video to look at: frames beside their flow in colours, fully saturated at the bound
    OUT             a folder of files, see --format
    """  # noqa: D301 — click reads the backspace as "keep these lines as they are"
    writer = next((FILE_WRITERS[end] for end in FILE_WRITERS if output.name.endswith(end)), None)
    if output.exists():
        raise click.ClickException(f"{output} exists already")
    unfinished = output.with_name(f".{output.name}.unfinished")
    try:
        count = sum(1 for _ in _frames(video, short_side)) - 1
        if count < 1:
            raise ValueError(f"{video}: {count + 1} frame: flow needs two or more")
        _remove(unfinished)
        if writer is None:
            writer = FOLDER_WRITERS[form]
            unfinished.mkdir(parents=True)
        frames, backend = _frames(video, short_side), fastest_backend() if backend == "auto" else backend
        pairs = _pairs(frames, VARIANTS[variant], backend, threads or os.cpu_count() or 1)
        _write(writer, unfinished, pairs, count, bound)
        unfinished.rename(output)
    except (ValueError, OSError, BackendUnavailable, av.error.FFmpegError) as error:
        raise click.ClickException(str(error)) from error
    finally:
        _remove(unfinished)


def _frames(video: Path, short_side: int | None) -> Iterator[np.ndarray]:
    """The frames of a video, turned upright, [H, W, 3] uint8 RGB; all of the first one's size."""
    with av.open(str(video)) as container:
        if not container.streams.video:
            raise ValueError(f"{video}: no video stream")
        first = None
        for number, frame in enumerate(container.decode(video=0)):
            picture = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
            if short_side is not None:
                share = short_side / min(picture.shape[:2])
                height, width = (max(short_side, round(share * side)) for side in picture.shape[:2])
                picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
            first = picture.shape if first is None else first
            if picture.shape != first:
                raise ValueError(f"{video}: frame {number} is {picture.shape}, those before it {first}")
            yield picture


def _pairs(
    frames: Iterator[np.ndarray], params: TVL1Params, backend: str, threads: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Frames with the flow to the next one, computed as many at a time as there are threads, or as a GPU wants."""
    waiting: list[np.ndarray] = []
    at_a_time = GPU_PAIRS if backend == CUDA else threads
    while True:
        waiting += islice(frames, at_a_time + 1 - len(waiting))
        if len(waiting) < 2:
            return
        grey = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in waiting])
        yield from zip(waiting, tvl1(grey, params, backend=backend, threads=threads), strict=False)
        waiting = waiting[-1:]


def _write(
    writer: Writer, target: Path, pairs: Iterator[tuple[np.ndarray, np.ndarray]], count: int, bound: float
) -> None:
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

        writer(target, counted(), count, bound)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main(prog_name="python -m flow")
