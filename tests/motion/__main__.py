"""`make motion`: render the motion clips, prepare them, then run the cells of `cells.toml` and render their tables.

Two sets stand for the paper's two kinds: `source`, larger, for Kinetics; `target`, of other motions and few clips, for
UCF-101. Their sizes and seeds were fixed before anything was trained on them. The held-out clips differ from those
trained on in shapes, speeds, textures and colours (see `tests.demo.render`).
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from tests.demo.__main__ import SIZES, render, run
from tests.demo.render import CLASSES, Video, plan_videos, write_manifest

CLIP_SECONDS = 3
CELLS = Path(__file__).with_name("cells.toml")


@dataclass(frozen=True)
class MotionSet:
    """Which motions, how many clips of each, and the seed of their scenes."""

    name: str
    labels: tuple[str, ...]
    train_clips: int  # of each class
    test_clips: int
    seed: int

    def videos(self) -> list[Video]:
        """The clips to train on first, then those to test on."""
        return plan_videos(self.train_clips, self.test_clips, CLIP_SECONDS, self.seed, self.labels, SIZES)


SOURCE = MotionSet("source", (*CLASSES[:4], *CLASSES[6:8]), train_clips=60, test_clips=30, seed=101)
TARGET = MotionSet("target", (*CLASSES[4:6], *CLASSES[8:]), train_clips=24, test_clips=40, seed=202)


def main(arguments: Sequence[str] | None = None) -> None:
    """Render, prepare, and run all cells."""
    parser = argparse.ArgumentParser(prog="python -m tests.motion", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("motion"), help="folder for all that is made")
    parser.add_argument("--only-prepare", action="store_true", help="train nothing")
    options = parser.parse_args(arguments)
    output: Path = options.output
    console = Console()
    for motions in (SOURCE, TARGET):
        prepare(motions, output, console)
    if not options.only_prepare:
        os.chdir(output)  # the cells name the sets from there
        run("i3d-tables", "run", CELLS, "--output", "cells")
        run("i3d-tables", "render", CELLS, "--output", "cells", "--page", "tables.html", "--markdown", "tables.md")


def prepare(motions: MotionSet, output: Path, console: Console) -> None:
    """Two data sets of the clips: of 64 pixels with flow, and of 112 for the 3D-ConvNet, which sees no less."""
    videos = motions.videos()
    folder = output / motions.name
    console.rule(f"{motions.name}: {len(videos)} clips of {len(motions.labels)} motions")
    render(videos, folder / "videos", console)
    train, test, classes = write_manifest(videos, folder)
    lists = ["--manifest", train, "--manifest", test, "--classes", classes, "--source", folder / "videos"]
    run("kinetics-prep", "run", *lists, "--output", folder / "64", "--short-side", 64)
    run("kinetics-prep", "run", *lists, "--output", folder / "112", "--short-side", 112, "--flow", "none")


if __name__ == "__main__":
    main()
