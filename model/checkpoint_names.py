"""What I3D's weights are called in the checkpoints that people have.

Four namings of one network: DeepMind's TensorFlow variables, the PyTorch ports of piergiaj (pytorch-i3d) and hassony2
(kinetics_i3d_pytorch), and this project's own. Matching needs names only, no data; what is missing or left over is an
error, never passed over.
"""

from collections.abc import Callable, Iterable
from typing import Literal

from model.i3d import I3D
from model.tensorflow_checkpoint import CheckpointError

Format = Literal["tensorflow", "piergiaj", "hassony2", "run"]

_MIXED_UNITS = (
    "branch_0.Conv3d_0a_1x1",
    "branch_1.Conv3d_0a_1x1",
    "branch_1.Conv3d_0b_3x3",
    "branch_2.Conv3d_0a_1x1",
    "branch_2.Conv3d_0b_3x3",
    "branch_3.Conv3d_0b_1x1",
)
_NORM_TENSORS = ("bias", "running_mean", "running_var")
_NAMES_SHOWN = 3


def match_names(names: Iterable[str], format: Format) -> dict[str, str]:
    """Which of our weights each of a checkpoint's names is.

    Names that carry nothing for the network are left out: TensorFlow's `/Momentum` slots and torch's
    `num_batches_tracked` counters. The scale of a port's batch normalisation, which this network does not have, is
    given as `….norm.weight`.

    Args:
        names: the names in a checkpoint.
        format: whose naming it is.

    Returns:
        their name → our name, in our order.

    Raises:
        CheckpointError: if a name is missing or left over; the first few are named.
    """
    names = set(names)
    match format:
        case "tensorflow":
            expected, ignored = _tensorflow_names(names)
        case "piergiaj":
            expected, ignored = _port_names(_piergiaj_unit, norm="bn", head="logits")
        case "hassony2":
            expected, ignored = _port_names(_hassony2_unit, norm="batch3d", head="conv3d_0c_1x1")
        case "run":
            expected, ignored = {name: name for name in _our_names()}, set()
    refuse("missing", [name for name in expected if name not in names])
    refuse("left over", sorted(names - expected.keys() - ignored))
    return expected


def refuse(fault: str, names: list[str]) -> None:
    """Raises a CheckpointError that counts `names` and shows the first few; none are no error."""
    if names:
        shown = ", ".join(names[:_NAMES_SHOWN]) + (", …" if len(names) > _NAMES_SHOWN else "")
        raise CheckpointError(f"{len(names)} {fault}: {shown}")


def _units() -> list[str]:
    """Our names of all 57 convolutions that a batch normalisation follows."""
    units = []
    for endpoint in I3D.ENDPOINTS:
        if endpoint.startswith("Conv3d"):
            units.append(endpoint)
        elif endpoint.startswith("Mixed"):
            units.extend(f"{endpoint}.{unit}" for unit in _MIXED_UNITS)
    return units


def _our_names() -> list[str]:
    names = []
    for unit in _units():
        names += [f"{unit}.conv.weight", *(f"{unit}.norm.{tensor}" for tensor in _NORM_TENSORS)]
    return [*names, "Logits.weight", "Logits.bias"]


def _tensorflow_names(names: set[str]) -> tuple[dict[str, str], set[str]]:
    # The released scopes are RGB/inception_i3d and Flow/inception_i3d; the 600-class network has none.
    stem = "Conv3d_1a_7x7/conv_3d/w"
    scope = next((name.removesuffix(stem) for name in sorted(names) if f"/{name}".endswith(f"/{stem}")), "")
    expected = {}
    for unit in _units():
        theirs = unit.replace(".", "/").replace("branch", "Branch")
        if unit == "Mixed_5b.branch_2.Conv3d_0b_3x3":
            theirs = "Mixed_5b/Branch_2/Conv3d_0a_3x3"  # spelt so in the released code, in this one module
        expected[f"{scope}{theirs}/conv_3d/w"] = f"{unit}.conv.weight"
        for tensor, ours in zip(("beta", "moving_mean", "moving_variance"), _NORM_TENSORS, strict=True):
            expected[f"{scope}{theirs}/batch_norm/{tensor}"] = f"{unit}.norm.{ours}"
    expected[f"{scope}Logits/Conv3d_0c_1x1/conv_3d/w"] = "Logits.weight"
    expected[f"{scope}Logits/Conv3d_0c_1x1/conv_3d/b"] = "Logits.bias"
    return expected, {f"{name}/Momentum" for name in expected}


def _port_names(port_unit: Callable[[str], str], norm: str, head: str) -> tuple[dict[str, str], set[str]]:
    expected = {}
    ignored = set()
    for unit in _units():
        theirs = port_unit(unit)
        expected[f"{theirs}.conv3d.weight"] = f"{unit}.conv.weight"
        for tensor in ("weight", *_NORM_TENSORS):
            expected[f"{theirs}.{norm}.{tensor}"] = f"{unit}.norm.{tensor}"
        ignored.add(f"{theirs}.{norm}.num_batches_tracked")  # files older than torch 0.4 have none
    for tensor in ("weight", "bias"):
        expected[f"{head}.conv3d.{tensor}"] = f"Logits.{tensor}"
    return expected, ignored


def _piergiaj_unit(unit: str) -> str:
    """Mixed_3b.branch_1.Conv3d_0a_1x1 → Mixed_3b.b1a; branch 0, of one convolution, is b0."""
    if "." not in unit:
        return unit
    module, branch, conv = unit.split(".")
    number = branch.removeprefix("branch_")
    letter = conv[len("Conv3d_0")]
    return f"{module}.b{number}{letter if number != '0' else ''}"


def _hassony2_unit(unit: str) -> str:
    """Mixed_3b.branch_1.Conv3d_0b_3x3 → mixed_3b.branch_1.1; branch 0 has no number."""
    if "." not in unit:
        return unit.replace("Conv3d", "conv3d")
    module, branch, conv = unit.split(".")
    position = "ab".index(conv[len("Conv3d_0")])
    return f"{module.lower()}.{branch}" + (f".{position}" if branch != "branch_0" else "")
