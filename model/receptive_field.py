"""What part of the input an activation depends on, computed from the kernels and strides of the layers themselves."""

from typing import NamedTuple

from torch import nn

from model.i3d import AVERAGE_POOL, I3D
from model.layers import ConvUnit, MaxPool


class ReceptiveField(NamedTuple):
    """Of one activation, by axis of the input: time in frames, height and width in pixels.

    Attributes:
        size: from the first to the last input that it depends on, away from the borders.
        stride: how far apart the fields of neighbouring activations begin.
    """

    size: tuple[int, ...]
    stride: tuple[int, ...]

    def through(self, kernel: tuple[int, ...], stride: tuple[int, ...]) -> "ReceptiveField":
        """The field of a layer of this kernel and stride whose input has this field."""
        return ReceptiveField(
            tuple(n + (k - 1) * apart for n, k, apart in zip(self.size, kernel, self.stride, strict=True)),
            tuple(apart * s for apart, s in zip(self.stride, stride, strict=True)),
        )


def receptive_fields(network: I3D) -> dict[str, ReceptiveField]:
    """The fields of I3D's endpoints in order, and last of its average pool, as "AveragePool"."""
    field = ReceptiveField((1, 1, 1), (1, 1, 1))
    fields = {}
    for name in network.ENDPOINTS:
        fields[name] = field = _behind(field, network.get_submodule(name))
    fields["AveragePool"] = field.through(AVERAGE_POOL, (1, 1, 1))
    return fields


def _behind(field: ReceptiveField, layer: nn.Module) -> ReceptiveField:
    """The field behind a layer: convolutions and pools one after the other, an Inception module's branches abreast."""
    match layer:
        case ConvUnit():
            return field.through(layer.conv.kernel_size, layer.conv.stride)
        case MaxPool():
            return field.through(layer.kernel_size, layer.stride)
        case nn.Sequential():
            for part in layer:
                field = _behind(field, part)
            return field
    # All branches begin at one place and are centred on it, so the largest holds the others.
    return max(_behind(field, branch) for branch in layer.children())
