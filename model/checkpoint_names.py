"""What weights are called in the checkpoints that people have.

Three namings of I3D: DeepMind's TensorFlow variables and the PyTorch ports of piergiaj (pytorch-i3d) and hassony2
(kinetics_i3d_pytorch); and torchvision's of its googlenet, which is Inception-v1 with batch normalisation. Matching
needs names only, no data; what is missing or left over is an error, never passed over.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Literal

from model.i3d import I3D
from model.tensorflow_checkpoint import CheckpointError

Naming = Literal["tensorflow", "piergiaj", "hassony2", "torchvision"]
Format = Literal["tensorflow", "piergiaj", "hassony2", "run", "safetensors"]

# The first convolution's weights, by which a naming is known; TensorFlow's files are known by their form.
_STEMS: dict[Naming, str] = {
    "piergiaj": "Conv3d_1a_7x7.conv3d.weight",
    "hassony2": "conv3d_1a_7x7.conv3d.weight",
    "torchvision": "conv1.conv.weight",
}

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


def naming_of(names: Collection[str]) -> Naming | None:
    """Whose naming the names of a PyTorch state dict are; None if it is none of these."""
    return next((naming for naming, stem in _STEMS.items() if stem in names), None)


def match_names(names: Iterable[str], naming: Naming) -> dict[str, str]:
    """Which of our weights each of a checkpoint's names is: those of an `I3D`, or torchvision's of an `InceptionV1`.

    Names that carry nothing for the network are left out: TensorFlow's `/Momentum` slots, torch's `num_batches_tracked`
    counters, and googlenet's two auxiliary classifiers. The scale of a batch normalisation, which these networks do not
    have, is given as `….norm.weight`.

    Args:
        names: the names in a checkpoint.
        naming: whose they are.

    Returns:
        their name → our name, in our order.

    Raises:
        CheckpointError: if a name is missing or left over; the first few are named.
    """
    names = set(names)
    match naming:
        case "tensorflow":
            expected, ignored = _tensorflow_names(names)
        case "piergiaj":
            expected, ignored = _port_names(_piergiaj_unit, "conv3d", "bn", "logits.conv3d")
        case "hassony2":
            expected, ignored = _port_names(_hassony2_unit, "conv3d", "batch3d", "conv3d_0c_1x1.conv3d")
        case "torchvision":
            expected, ignored = _port_names(_torchvision_unit, "conv", "bn", "fc")
            expected = {theirs: _of_pictures(ours) for theirs, ours in expected.items()}
            ignored |= {name for name in names if name.startswith(("aux1.", "aux2."))}
    require_names(names, expected, ignored)
    return expected


def require_names(names: Collection[str], expected: Collection[str], ignored: Collection[str] = ()) -> None:
    """Refuses names that are not exactly the expected ones, but for those to be ignored.

    Raises:
        CheckpointError: if one is missing or left over; the first few are named.
    """
    refuse("missing", [name for name in expected if name not in names])
    refuse("left over", sorted(set(names) - set(expected) - set(ignored)))


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


def _port_names(port_unit: Callable[[str], str], conv: str, norm: str, head: str) -> tuple[dict[str, str], set[str]]:
    expected = {}
    ignored = set()
    for unit in _units():
        theirs = port_unit(unit)
        expected[f"{theirs}.{conv}.weight"] = f"{unit}.conv.weight"
        for tensor in ("weight", *_NORM_TENSORS):
            expected[f"{theirs}.{norm}.{tensor}"] = f"{unit}.norm.{tensor}"
        ignored.add(f"{theirs}.{norm}.num_batches_tracked")  # files older than torch 0.4 have none
    for tensor in ("weight", "bias"):
        expected[f"{head}.{tensor}"] = f"Logits.{tensor}"
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


def _torchvision_unit(unit: str) -> str:
    """Conv3d_2b_1x1 → conv2; Mixed_3b.branch_1.Conv3d_0b_3x3 → inception3a.branch2.1; branch 0 has no second number."""
    if "." not in unit:
        return {"1a": "conv1", "2b": "conv2", "2c": "conv3"}[unit.split("_")[1]]
    module, branch, conv = unit.split(".")
    stage, letter = module[-2], module[-1]
    position = "ab".index(conv[len("Conv3d_0")])
    number = int(branch.removeprefix("branch_")) + 1
    return f"inception{stage}{chr(ord(letter) - 1)}.branch{number}" + (f".{position}" if number > 1 else "")


def _of_pictures(name: str) -> str:
    """Our name in an `InceptionV1` of what is inflated to this name in an I3D."""
    if name.startswith("Logits."):
        return name.replace("Logits", "head")
    return "body." + name.replace("Conv3d_", "Conv2d_")
