"""i3d-filters: figure 4, checked pixel by pixel on filters that are known."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from model import I3D, TwoStream, save_run
from train.filters import (
    CELLS_A_ROW,
    GAP_PIXELS,
    GREY,
    MAGNIFICATION,
    PANEL_GAP_PIXELS,
    WHITE,
    filters_command,
    filters_picture,
)

CELL = 7 * MAGNIFICATION + GAP_PIXELS
PANEL = CELLS_A_ROW * CELL + PANEL_GAP_PIXELS


def pixel(picture: np.ndarray, filter_: int, step: int, y: int, x: int, row: int = 0) -> list[int]:
    """The colour of a filter's pixel: in the middle of its square."""
    above, left = divmod(filter_, CELLS_A_ROW)
    top = PANEL_GAP_PIXELS + row * PANEL + above * CELL + GAP_PIXELS // 2
    side = PANEL_GAP_PIXELS + step * PANEL + left * CELL + GAP_PIXELS // 2
    return picture[top + y * MAGNIFICATION + 2, side + x * MAGNIFICATION + 2].tolist()


def test_rgb_filters_in_colour() -> None:
    weight = np.zeros((64, 3, 7, 7, 7), np.float32)
    weight[0, 0, 0, 0, 0] = 2.0  # red, at the first step
    weight[9, 2, 6, 6, 1] = -0.5  # against blue, at the last
    weight[9, 1, 3, 0, 6] = 0.25
    picture = filters_picture(weight)
    assert picture.dtype == np.uint8
    assert pixel(picture, 0, 0, 0, 0) == [255, GREY, GREY]
    assert pixel(picture, 0, 1, 0, 0) == [GREY] * 3
    assert pixel(picture, 9, 6, 6, 1) == [GREY, GREY, 1]  # each filter on its own scale
    assert pixel(picture, 9, 3, 0, 6) == [GREY, GREY + 64, GREY]
    assert pixel(picture, 63, 3, 3, 3) == [GREY] * 3  # nothing but zeros
    assert picture[0, 0].tolist() == [WHITE] * 3


def test_flow_filters_x_above_y() -> None:
    weight = np.zeros((64, 2, 7, 7, 7), np.float32)
    weight[1, 0, 2, 3, 4], weight[1, 1, 2, 3, 4] = 1.0, -1.0
    picture = filters_picture(weight)
    assert picture.shape == (2 * PANEL + PANEL_GAP_PIXELS, 7 * PANEL + PANEL_GAP_PIXELS, 3)
    assert pixel(picture, 1, 2, 3, 4, row=0) == [255] * 3
    assert pixel(picture, 1, 2, 3, 4, row=1) == [1] * 3


@pytest.mark.parametrize("channels", [3, 2])
def test_the_command(tmp_path: Path, channels: int) -> None:
    torch.manual_seed(0)
    network = I3D(5, channels)
    save_run(tmp_path / "run.pt", network, None)
    output = tmp_path / "new" / "filters.png"
    result = CliRunner().invoke(filters_command, [str(tmp_path / "run.pt"), "-o", str(output)])
    assert result.exit_code == 0, result.output
    shown = cv2.imread(str(output))[..., ::-1]
    assert np.array_equal(shown, filters_picture(network.Conv3d_1a_7x7.conv.weight.detach().numpy()))


def test_what_has_no_such_filters(tmp_path: Path) -> None:
    save_run(tmp_path / "two.pt", TwoStream(5), None)
    (tmp_path / "text.pt").write_text("no checkpoint")
    for name, said in (("two.pt", "architecture two-stream; want i3d"), ("text.pt", "text.pt"), ("none.pt", "none.pt")):
        result = CliRunner().invoke(filters_command, [str(tmp_path / name), "-o", str(tmp_path / "out.png")])
        assert result.exit_code == 1
        assert said in result.output
    assert not (tmp_path / "out.png").exists()


def test_a_checkpoint_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    save_run(path, I3D(5, 3), None)
    before = path.read_bytes()
    result = CliRunner().invoke(filters_command, [str(path), "-o", str(tmp_path / "." / "run.pt")])
    assert result.exit_code == 1
    assert "that is a file of CHECKPOINT, which would be lost" in result.output
    assert path.read_bytes() == before
