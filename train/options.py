"""Options that several commands share."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import click

from manifests.files import check_writable
from model.inception import MINIMUM_SIDE
from train.decode import CROP_PIXELS, Crops
from train.hold_out import LARGEST_SHARE
from train.loader import MAXIMUM_WORKERS
from train.run import Precision

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def _even(_: click.Context, option: click.Parameter, pixels: int | None) -> int | None:
    if pixels is not None and pixels % 2:
        raise click.BadParameter(f"{pixels} is odd, and colour is stored for 2x2 pixels", param=option)
    return pixels


class FiniteRange(click.FloatRange):
    """Numbers of a range; no infinity where it has no end, and not nan, which is neither below nor above a bound."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number; click's error for one that is none, or out of range."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not finite.", param, ctx)
        return number


def check_outputs(outputs: Mapping[str, Path], checkpoints: Mapping[str, Path | None]) -> None:
    """Say before any work what files cannot be written, and what they would replace.

    Args:
        outputs: resolved paths of files, by the options that name them.
        checkpoints: as they were given, by the options that name them.

    Raises:
        ValueError: a file of a checkpoint, or two that are one.
        OSError: one that cannot be written.
    """
    named: dict[Path, str] = {}
    for option, path in outputs.items():
        for name, checkpoint in checkpoints.items():
            if checkpoint is not None and _is_of(path, checkpoint.resolve()):
                raise ValueError(f"{option} {path}: that is a file of {name}, which would be lost")
        if path in named:
            raise ValueError(f"{option} {path}: that is {named[path]}, too")
        named[path] = option
        check_writable(path)


def _is_of(path: Path, checkpoint: Path) -> bool:
    """Whether a file is a checkpoint's; one of TensorFlow is named by the beginning of its files' names."""
    prefix = str(checkpoint).removesuffix(".index")
    return str(path) in (str(checkpoint), f"{prefix}.index") or str(path).startswith(f"{prefix}.data-")


RGB_OPTION = click.option("--rgb", type=click.Path(path_type=Path), help="Checkpoint of the RGB stream.")
FLOW_OPTION = click.option("--flow", type=click.Path(path_type=Path), help="Checkpoint of the flow stream.")
BOTH_OPTION = click.option("--both", type=click.Path(path_type=Path), help="Checkpoint of a network that sees both.")
_CROP = click.IntRange(MINIMUM_SIDE, 1080)
CROP_OPTION = click.option(
    "--crop",
    type=_CROP,
    callback=_even,
    default=CROP_PIXELS,
    show_default=True,
    help="Side in pixels, even.",
)
CROPS_OPTION = click.option(
    "--crops",
    type=click.Choice(get_args(Crops)),
    default=1,
    show_default=True,
    help="Test on the centre crop, or on three along the longer side, averaged.",
)
FLIPS_OPTION = click.option(
    "--flips", is_flag=True, help="Test on the mirrored clip, too, averaged; not where left and right differ."
)
TESTED_CROP_OPTION = click.option(
    "--crop",
    type=_CROP,
    callback=_even,
    help=f"Side in pixels, even.  [default: what the networks were trained with, else {CROP_PIXELS}]",
)
HELD_OUT_SHARE = FiniteRange(0, LARGEST_SHARE, min_open=True)
MAX_BAD_OPTION = click.option(
    "--max-bad", type=click.IntRange(min=0), default=10, show_default=True, help="Samples that may be unreadable."
)
WORKERS_OPTION = click.option(
    "--workers",
    type=click.IntRange(min=0),
    help=f"Processes that decode.  [default: cores − 1, at most {MAXIMUM_WORKERS}]",
)
PRECISION_OPTION = click.option(
    "--precision",
    type=click.Choice(get_args(Precision)),
    default="fp32",
    show_default=True,
    help="bf16 is faster where the processor multiplies it natively; logits move by a few hundredths.",
)
