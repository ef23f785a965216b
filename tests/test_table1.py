"""Table 1 and the receptive fields of figure 3, computed from networks and samplers."""

import re
from bisect import bisect_left

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from torch import Tensor

from model import I3D
from model.receptive_field import receptive_fields
from tests.networks import random_network
from train.table1 import FIGURE_3, PAPER, parameters, table1_command, table_row


@pytest.mark.parametrize(
    ("architecture", "count"),
    [
        ("lstm", 8_950_720),
        ("c3d", 79_634_576),
        ("two-stream", 12_058_560),
        ("fused", 39_755_824),
        ("i3d", 25_358_016),
    ],
)
def test_parameters_are_those_of_table_1(architecture, count):
    assert parameters(architecture) == count
    assert abs(count / 1e6 - int(PAPER[architecture][0].removesuffix("M"))) < 1


def test_frames_and_footprints_are_those_of_table_1():
    """Where flow is seen by a test, its 249 pictures make the footprint 9.96 s; I3D's flow network sees each once."""
    expected = {architecture: list(row[1:]) for architecture, row in PAPER.items()}
    expected["two-stream"][3] = expected["fused"][3] = "9.96 s"
    expected["i3d"][2] = "250 rgb, 249 flow"
    assert {architecture: list(table_row(architecture)[1:]) for architecture in PAPER} == expected


def seen_along(network: I3D, name: str, axis: int, size: int) -> int:
    """How many inputs lie from the first to the last that one activation in the middle depends on, by trying."""
    extents = [9, 32, 32]
    extents[axis] = size

    def depends(first: int, stop: int) -> bool:
        video = torch.zeros(1, 3, *extents)
        video.narrow(2 + axis, first, stop - first).fill_(float("nan"))
        with torch.no_grad():  # in training mode the input's values are not checked
            activations = network.endpoint(video, "Mixed_5c" if name == "AveragePool" else name)
        if name == "AveragePool":
            activations = F.avg_pool3d(activations, (2, 1, 1) if axis == 0 else (2, 1, 7), 1)
        along = activations.isnan().any(dim=1).transpose(1, 1 + axis).flatten(2).any(dim=2)[0]
        return bool(along[len(along) // 2])

    stop_of_first = bisect_left(range(size + 1), True, key=lambda stop: depends(0, stop))
    after_last = bisect_left(range(size + 1), True, key=lambda first: not depends(first, size))
    return after_last - (stop_of_first - 1)


class _Passing(torch.nn.Module):
    """Instead of batch normalisation, which would spread what is not a number."""

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize(
    "name",
    [
        "Conv3d_1a_7x7",
        "MaxPool3d_2a_3x3",
        "Mixed_3b",
        pytest.param("MaxPool3d_5a_2x2", marks=pytest.mark.slow),
        pytest.param("AveragePool", marks=pytest.mark.slow),
    ],
)
def test_receptive_fields_are_what_activations_depend_on(name, axis):
    network = random_network("i3d", ("rgb",))
    for module in network.modules():
        if hasattr(module, "norm"):
            module.norm = _Passing()
    field = receptive_fields(network)[name]
    enough = max(2 * field.size[axis] + 2 * field.stride[axis], 32)
    assert seen_along(network, name, axis, enough) == field.size[axis]


def test_receptive_fields_beside_figure_3():
    with torch.device("meta"):
        fields = receptive_fields(I3D())
    assert list(fields) == [*I3D.ENDPOINTS, "AveragePool"]
    ours = {name: fields[name].size for name in FIGURE_3}
    # Behind the five modules of the fourth stage the figure counts one module less, of 8 frames and 32 pixels.
    module = [n - m for n, m in zip(fields["Mixed_4f"].size, fields["Mixed_4e"].size, strict=True)]
    assert module == [8, 32, 32]
    for name in ("MaxPool3d_5a_2x2", "AveragePool"):
        ours[name] = tuple(n - m for n, m in zip(ours[name], module, strict=True))
    assert ours == FIGURE_3
    assert fields["Mixed_5c"].stride == (8, 32, 32)


def test_command_prints_both_tables():
    done = CliRunner().invoke(table1_command)
    assert done.exit_code == 0, done.output
    assert re.search(r"^c3d +parameters +79M +79,634,576$", done.output, re.MULTILINE)
    assert re.search(r"^fused +frames in testing +25 rgb, 250 flow +25 rgb, 250 flow$", done.output, re.MULTILINE)
    assert re.search(r"^MaxPool3d_5a_2x2 +59 x 219 x 219 +67 x 251 x 251$", done.output, re.MULTILINE)
