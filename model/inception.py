"""Inception-v1 with batch normalisation (Szegedy et al., 2015; Ioffe & Szegedy, 2015), and as I3D inflates it.

The second branch's larger convolution is 3x3, not 5x5, as in the released I3D; so are names and padding.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.layers import BatchNorm, ConvUnit, MaxPool, TemporalPadding, initialise

MINIMUM_SIDE = 32  # the network's spatial stride: a smaller picture is less than one cell of its last grid

# Output channels of each module's convolutions: branch 0; branch 1's 1x1 and 3x3; branch 2's 1x1 and 3x3; branch 3.
_MIXED_CHANNELS = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}


class Inception(nn.Module):
    """The network up to its last module: of pictures in two dimensions, of videos in three.

    The layers are attributes, named in order by `endpoint_names`. In two dimensions each lacks the extents in time of
    its inflated twin, and nothing else.

    Args:
        in_channels: of the input.
        dimensions: 2 or 3.
        temporal_padding: see `model.I3D`.
    """

    OUT_CHANNELS = 1024

    def __init__(self, in_channels: int, dimensions: Literal[2, 3], temporal_padding: TemporalPadding = "zero") -> None:
        super().__init__()

        def conv(inputs: int, outputs: int, kernel_size: int, stride: int = 1) -> ConvUnit:
            extents = (kernel_size,) * dimensions
            return ConvUnit(inputs, outputs, extents, (stride,) * dimensions, temporal_padding)

        def pool(kernel_size: tuple[int, int, int], stride: tuple[int, int, int]) -> MaxPool:
            return MaxPool(kernel_size[-dimensions:], stride[-dimensions:])

        def mixed(name: str, inputs: int) -> MixedModule:
            return MixedModule(inputs, _MIXED_CHANNELS[name], dimensions, temporal_padding)

        layers = (
            conv(in_channels, 64, 7, stride=2),
            pool((1, 3, 3), (1, 2, 2)),
            conv(64, 64, 1),
            conv(64, 192, 3),
            pool((1, 3, 3), (1, 2, 2)),
            mixed("Mixed_3b", 192),
            mixed("Mixed_3c", 256),
            pool((3, 3, 3), (2, 2, 2)),
            mixed("Mixed_4b", 480),
            mixed("Mixed_4c", 512),
            mixed("Mixed_4d", 512),
            mixed("Mixed_4e", 512),
            mixed("Mixed_4f", 528),
            pool((2, 2, 2), (2, 2, 2)),
            mixed("Mixed_5b", 832),
            mixed("Mixed_5c", 832),
        )
        for name, layer in zip(endpoint_names(dimensions), layers, strict=True):
            self.add_module(name, layer)
        self.dimensions = dimensions
        self.recomputes = False  # see `recompute_activations`

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, …, H, W] → [B, 1024, …, ceil(H / 32), ceil(W / 32)], its values from 0 up."""
        return self._through(x, endpoint_names(self.dimensions))

    def _through(self, x: Tensor, names: Sequence[str]) -> Tensor:
        """The activation behind layers in a row."""
        for name in names:
            layer = self.get_submodule(name)
            x = _recomputed(layer, x) if self.recomputes and torch.is_grad_enabled() else layer(x)
        return x


def recompute_activations(network: nn.Module) -> None:
    """From now on each layer of each `Inception` keeps its input alone for the backward pass, and is computed twice.

    A training step then takes about a third longer, in far less memory. Its gradients, and the statistics of batch
    normalisation after it, are the same.
    """
    for module in network.modules():
        if isinstance(module, Inception):
            module.recomputes = True


def _recomputed(layer: nn.Module, x: Tensor) -> Tensor:
    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _unchanged_statistics(layer)

    # No layer draws random numbers, so their state need not be kept.
    if torch.compiler.is_compiling():  # a compiler makes the second pass out of the first: statistics change once
        y: Tensor = checkpoint(layer, x, use_reentrant=False, preserve_rng_state=False)
    else:
        y = checkpoint(layer, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
    return y


@contextmanager
def _unchanged_statistics(layer: nn.Module) -> Iterator[None]:
    """The first pass has updated them."""
    norms = [module for module in layer.modules() if isinstance(module, BatchNorm)]
    momentum = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, before in zip(norms, momentum, strict=True):
            norm.momentum = before


class InceptionV1(nn.Module):
    """The network of pictures, whole: `body`, average pool, dropout, and a linear layer, `head`.

    Args:
        num_classes: how many logits.
        in_channels: 3 for RGB; 2 · N for N flows stacked, x before y of each.
        dropout: probability of dropping a feature in training.
    """

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5) -> None:
        super().__init__()
        self.num_classes, self.in_channels = num_classes, in_channels
        self.body = Inception(in_channels, 2)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(Inception.OUT_CHANNELS, num_classes)
        initialise(self.head)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] floats in [−1, 1] → logits [B, num_classes]."""
        logits: Tensor = self.head(self.dropout(self.body(x).flatten(2).mean(dim=2)))  # so that it can be inflated
        return logits


def endpoint_names(dimensions: Literal[2, 3]) -> tuple[str, ...]:
    """The layers of `Inception` in order, as DeepMind (3) and TF-Slim (2) call them."""
    conv, pool = f"Conv{dimensions}d", f"MaxPool{dimensions}d"
    return (
        f"{conv}_1a_7x7",
        f"{pool}_2a_3x3",
        f"{conv}_2b_1x1",
        f"{conv}_2c_3x3",
        f"{pool}_3a_3x3",
        "Mixed_3b",
        "Mixed_3c",
        f"{pool}_4a_3x3",
        "Mixed_4b",
        "Mixed_4c",
        "Mixed_4d",
        "Mixed_4e",
        "Mixed_4f",
        f"{pool}_5a_2x2",
        "Mixed_5b",
        "Mixed_5c",
    )


class MixedModule(nn.Module):
    """An Inception module, of pictures or inflated: four branches side by side, their channels concatenated.

    Args:
        in_channels: channels of the input.
        channels: output channels of the six convolutions, see `_MIXED_CHANNELS`.
        dimensions: 2 of pictures, 3 of videos.
        temporal_padding: see `model.I3D`.
    """

    def __init__(
        self,
        in_channels: int,
        channels: tuple[int, int, int, int, int, int],
        dimensions: Literal[2, 3],
        temporal_padding: TemporalPadding = "zero",
    ) -> None:
        super().__init__()
        conv, pool = f"Conv{dimensions}d", f"MaxPool{dimensions}d"

        def unit(inputs: int, outputs: int, kernel_size: int) -> ConvUnit:
            return ConvUnit(inputs, outputs, (kernel_size,) * dimensions, temporal_padding=temporal_padding)

        def branch(*layers: tuple[str, nn.Module]) -> nn.Sequential:
            return nn.Sequential(OrderedDict(layers))

        self.branch_0 = branch((f"{conv}_0a_1x1", unit(in_channels, channels[0], 1)))
        self.branch_1 = branch(
            (f"{conv}_0a_1x1", unit(in_channels, channels[1], 1)),
            (f"{conv}_0b_3x3", unit(channels[1], channels[2], 3)),
        )
        self.branch_2 = branch(
            (f"{conv}_0a_1x1", unit(in_channels, channels[3], 1)),
            (f"{conv}_0b_3x3", unit(channels[3], channels[4], 3)),
        )
        self.branch_3 = branch(
            (f"{pool}_0a_3x3", MaxPool((3,) * dimensions, (1,) * dimensions)),
            (f"{conv}_0b_1x1", unit(in_channels, channels[5], 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, …] → [B, sum of the branches' channels, …]."""
        return torch.cat([self.branch_0(x), self.branch_1(x), self.branch_2(x), self.branch_3(x)], dim=1)
