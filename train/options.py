"""Options that several commands share."""

from pathlib import Path
from typing import get_args

import click

from model.inception import MINIMUM_SIDE
from train.decode import CROP_PIXELS
from train.hold_out import LARGEST_SHARE
from train.run import Precision

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def _even(_: click.Context, option: click.Parameter, pixels: int | None) -> int | None:
    if pixels is not None and pixels % 2:
        raise click.BadParameter(f"{pixels} is odd, and colour is stored for 2x2 pixels", param=option)
    return pixels


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
TESTED_CROP_OPTION = click.option(
    "--crop",
    type=_CROP,
    callback=_even,
    help=f"Side in pixels, even.  [default: what the networks were trained with, else {CROP_PIXELS}]",
)
HELD_OUT_SHARE = click.FloatRange(0, LARGEST_SHARE, min_open=True)
PRECISION_OPTION = click.option(
    "--precision",
    type=click.Choice(get_args(Precision)),
    default="fp32",
    show_default=True,
    help="bf16 is faster where the processor multiplies it natively; logits move by a few hundredths.",
)
