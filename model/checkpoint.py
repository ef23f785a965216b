"""The weights of a network and what is known of them; whether tensors are the weights of a given network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from model.build import Network, build
from model.checkpoint_names import Format, refuse
from model.layers import Architecture, Stream, TemporalPadding, initialise
from model.tensorflow_checkpoint import CheckpointError

MAXIMUM_CLASSES = 1_000_000


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one network, and what is known of them.

    Attributes:
        state_dict: of `build(architecture, streams, num_classes)`: of torch's default dtype, float32, all finite, in
            main memory.
        architecture: which network it is.
        streams: what the network takes, in this order.
        num_classes: the number of logits.
        format: where the weights come from.
        sha256: file name → SHA-256 (hexadecimal) of each file read, as `sha256sum` prints it.
        classes: the classes' names in the order of the logits; None where the file does not say.
        temporal_padding: what an I3D was trained with, "zero" in all released ones; of all others "zero".
        crop: side of the squares that it was trained on, in pixels; None where the file does not say, as in the
            released networks and their ports, which mean 224.
        short_side: of the stored pictures that these were cut from, in pixels; None as of `crop`, where 256 is meant.
        hold_out: share of the training clips that it was not trained on; None where the file does not say, or none.
    """

    state_dict: dict[str, Tensor]
    architecture: Architecture
    streams: tuple[Stream, ...]
    num_classes: int
    format: Format
    sha256: dict[str, str]
    classes: tuple[str, ...] | None = None
    temporal_padding: TemporalPadding = "zero"
    crop: int | None = None
    short_side: int | None = None
    hold_out: float | None = None

    @property
    def is_own(self) -> bool:
        """Whether a file of this project holds it: what such a file does not say is unknown, not as released."""
        return self.format in ("run", "safetensors")

    def network(self) -> Network:
        """A network that holds these weights (the tensors themselves, no copies), in evaluation mode."""
        with torch.device("meta"):  # no memory and no random numbers for weights that are replaced at once
            network = build(self.architecture, self.streams, self.num_classes, temporal_padding=self.temporal_padding)
        network.load_state_dict(self.state_dict, assign=True)
        return network.eval()

    def with_new_head(self, num_classes: int) -> "Checkpoint":
        """The same network but for its last layers, which are of `num_classes` unnamed classes and begin anew.

        Their weights come from torch's random numbers, as those of a network from `build` do.

        Raises:
            ValueError: if there is no class.
        """
        with torch.device("meta"):  # only the head needs memory and random numbers
            network = build(self.architecture, self.streams, num_classes)
        fresh = {}
        for name in head_names(self.architecture, self.streams):
            layer_name, _, tensor = name.rpartition(".")
            layer = network.get_submodule(layer_name)
            assert isinstance(layer, (nn.Linear, nn.Conv3d))
            if tensor == "weight":
                initialise(layer.to_empty(device="cpu"))
            fresh[name] = layer.get_parameter(tensor).detach()
        return replace(self, state_dict={**self.state_dict, **fresh}, num_classes=num_classes, classes=None)


def head_names(architecture: Architecture, streams: Sequence[Stream]) -> list[str]:
    """Names of the tensors whose size is the number of classes: of the last layer, or of each stream's."""
    one, two = weight_shapes(architecture, streams, 1), weight_shapes(architecture, streams, 2)
    return [name for name in one if one[name] != two[name]]


def weight_shapes(
    architecture: Architecture, streams: Sequence[Stream], num_classes: int
) -> dict[str, tuple[int, ...]]:
    """Name → shape of all tensors of a network's state dict, in its order.

    Raises:
        ValueError: if there is no such network.
    """
    with torch.device("meta"):
        network = build(architecture, streams, num_classes)
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def plain_tensors(names: Mapping[str, str], values: Mapping[str, object]) -> dict[str, Tensor]:
    """Tensors of the default dtype under our names.

    Args:
        names: their name → our name.
        values: their name → what should be a tensor.

    Raises:
        CheckpointError: for values that are no tensors of floats; they are named.
    """
    plain = {name: value for name in names if isinstance(value := values[name], Tensor) and _is_plain(value)}
    refuse("no plain tensors of floating point", [name for name in names if name not in plain])
    return {ours: plain[name].detach().to(torch.get_default_dtype()).contiguous() for name, ours in names.items()}


def _is_plain(tensor: Tensor) -> bool:
    """Whether these are floats in memory.

    A file can also hold sparse tensors, subclasses, and tensors with fewer data than elements (none at all, or one
    number for a petabyte); none of those are weights.
    """
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and tensor.is_floating_point()
        and tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()
    )


def check_shapes(
    names: Mapping[str, str], shapes: Mapping[str, Sequence[int]], expected: Mapping[str, Sequence[int]]
) -> None:
    """Refuses tensors that do not fit.

    Args:
        names: their name → our name.
        shapes: our name → shape.
        expected: our name → shape that it must have. The scale of a batch normalisation, of those networks that have
            one, is as long as its offset.

    Raises:
        CheckpointError: the first few are named, with what they have and should have.
    """
    wrong = []
    for theirs, ours in names.items():
        offset = ours.removesuffix(".norm.weight") + ".norm.bias" if ours.endswith(".norm.weight") else ours
        if list(shapes[ours]) != list(expected[offset]):
            wrong.append(f"{theirs} {list(shapes[ours])} instead of {list(expected[offset])}")
    refuse("of the wrong shape", wrong)


def fold_scales(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Moves the scale γ of each batch normalisation into the convolution before it.

    γ (w·x - mean) / sqrt(var + ε) = (γw·x - γ mean) / sqrt(var + ε), so weights and means are scaled, variances not.
    """
    folded = dict(tensors)
    for name in tensors:
        if name.endswith(".norm.weight"):
            unit = name.removesuffix(".norm.weight")
            scale = folded.pop(name)
            weight = folded[f"{unit}.conv.weight"]
            folded[f"{unit}.conv.weight"] = weight * scale.view(-1, *[1] * (weight.ndim - 1))
            folded[f"{unit}.norm.running_mean"] = folded[f"{unit}.norm.running_mean"] * scale
    return folded


def finite(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors themselves.

    Raises:
        CheckpointError: if a number among them is infinite or none.
    """
    refuse("not finite", [name for name, tensor in tensors.items() if not tensor.isfinite().all()])
    return tensors


def require_classes(number: int) -> int:
    """The number, if a network can have so many classes; else raises a CheckpointError."""
    if number > MAXIMUM_CLASSES:
        raise CheckpointError(f"its last layer is of {number} classes, more than {MAXIMUM_CLASSES}")
    return number
