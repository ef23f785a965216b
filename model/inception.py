"""Inception-v1 with batch normalisation (Szegedy et al., 2015; Ioffe & Szegedy, 2015), which I3D inflates."""

from collections import OrderedDict
from typing import Literal

import torch
from torch import Tensor, nn

from model.layers import ConvUnit, MaxPool, TemporalPadding

# Output channels of each module's convolutions: branch 0; branch 1's 1x1 and 3x3; branch 2's 1x1 and 3x3; branch 3.
MIXED_CHANNELS = {
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


class MixedModule(nn.Module):
    """An Inception module, of pictures or inflated: four branches side by side, their channels concatenated.

    Args:
        in_channels: channels of the input.
        channels: output channels of the six convolutions, see `MIXED_CHANNELS`.
        dimensions: 2 of pictures, 3 of videos.
        temporal_padding: as for `model.I3D`.
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
