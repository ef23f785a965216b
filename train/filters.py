"""The command `i3d-filters`: the filters of I3D's first convolution as a picture, as in the paper's figure 4."""

from pathlib import Path

import click
import cv2
import numpy as np

from manifests.clip import printable
from manifests.files import write_file
from model import I3D, CheckpointError, load_checkpoint
from train.options import CONTEXT, check_outputs

CELLS_A_ROW = 8
MAGNIFICATION = 5  # pixels of the picture for one of a filter, each way
GAP_PIXELS = 2
PANEL_GAP_PIXELS = 12
GREY = 128  # a weight of 0
WHITE = 255


@click.command("i3d-filters", context_settings=CONTEXT)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--output", "-o", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The PNG file.")
def filters_command(checkpoint: Path, output: Path) -> None:
    """Draw the 64 filters of I3D's first convolution (figure 4 of the paper).

    Its seven time steps stand from left to right, the filters of each in a square. Of an RGB network a pixel's weights
    for red, green and blue are its colour. Of a flow network those for x stand above those for y, in grey. A weight of
    0 is mid-grey; each filter has its own scale, that of its largest weight, at all its time steps alike.

    Example: i3d-filters rgb_scratch/model.ckpt -o filters.png
    """
    try:
        check_outputs({"--output": output.resolve()}, {"CHECKPOINT": checkpoint})
        network = load_checkpoint(checkpoint).network()
        if not isinstance(network, I3D):
            raise CheckpointError(f"{checkpoint}: holds the architecture {network.architecture}; want i3d")
        picture = filters_picture(network.state_dict()["Conv3d_1a_7x7.conv.weight"].numpy())
        ok, encoded = cv2.imencode(".png", picture[..., ::-1])
        if not ok:
            raise RuntimeError(f"cannot encode a picture of {picture.shape} as PNG")
        write_file(output.resolve(), encoded.tobytes())
    except (CheckpointError, ValueError, OSError) as error:
        raise click.ClickException(printable(str(error))) from error


def filters_picture(weight: np.ndarray) -> np.ndarray:
    """Filters as an RGB picture, on white.

    Args:
        weight: [filters, C, T, H, W] floats, C of 3 (red, green, blue) or 2 (x, y).

    Returns:
        [rows, columns, 3] uint8: one panel a time step from left to right, and where C is 2, one row of panels each.
    """
    largest = np.abs(weight).max(axis=(1, 2, 3, 4), keepdims=True)
    codes = GREY + np.rint(weight * (127 / np.where(largest > 0, largest, 1)))
    pixels = codes.astype(np.uint8).transpose(2, 0, 3, 4, 1)  # [T, filters, H, W, C]
    in_colour = [pixels] if pixels.shape[-1] == 3 else [np.repeat(pixels[..., [c]], 3, axis=-1) for c in (0, 1)]
    rows = [np.concatenate([_panel(filters) for filters in steps], axis=1) for steps in in_colour]
    return _framed(np.concatenate(rows), PANEL_GAP_PIXELS // 2)


def _panel(filters: np.ndarray) -> np.ndarray:
    """Filters [N, H, W, 3] of one time step, in rows of `CELLS_A_ROW`."""
    large = filters.repeat(MAGNIFICATION, axis=1).repeat(MAGNIFICATION, axis=2)
    cells = [_framed(cell, GAP_PIXELS // 2) for cell in large]
    rows = [np.concatenate(cells[i : i + CELLS_A_ROW], axis=1) for i in range(0, len(cells), CELLS_A_ROW)]
    return _framed(np.concatenate(rows), PANEL_GAP_PIXELS // 2)


def _framed(picture: np.ndarray, pixels: int) -> np.ndarray:
    """With so many white pixels on each side."""
    return np.pad(picture, ((pixels, pixels), (pixels, pixels), (0, 0)), constant_values=WHITE)
