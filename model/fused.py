"""3D-Fused (section 2.3): two Inception-v1 of pictures whose features a small network of three dimensions joins.

After Feichtenhofer et al. (2016), "approximately" as the paper says. Where it is silent:

- The streams' features are concatenated: the number of parameters in table 1 leaves nothing else.
- Like every other convolution, that of the fusion is followed by batch normalisation and a ReLU (section 2.5).
- The 3x3x3 max-pool has stride 2 and SAME padding, as all of I3D's that have this size; what it leaves, 3x4x4 of
  5x7x7, is averaged, then come dropout and the fully connected layer.
- The new layers' Gaussian noise is cut at two deviations and scaled by the fan-in, as everywhere here.
- A stream alone has the same layers over its 1024 channels; the paper reports such figures without saying how.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.inception import MINIMUM_SIDE, Inception
from model.layers import (
    STREAM_CHANNELS,
    Architecture,
    ConvUnit,
    MaxPool,
    Stream,
    as_pictures,
    check_arguments,
    check_inputs,
    check_streams,
    initialise,
)

SNIPPETS = 5
FLOWS_OF_SNIPPET = 10
FRAMES: dict[Stream, int] = {"rgb": SNIPPETS, "flow": SNIPPETS * FLOWS_OF_SNIPPET}

_FUSED_CHANNELS = 512


class Fused(nn.Module):
    """Five RGB frames, ten apart, and the ten flows from each on in, class logits out; or one of both alone.

    `rgb` and `flow` are the networks of pictures, `fusion` and `pool` the layers over both, `head` the last one.

    Args:
        num_classes: how many logits.
        streams: "rgb", "flow" or both in this order.
        dropout: probability of dropping a feature in training.

    Raises:
        ValueError: for arguments out of range.
    """

    architecture: Architecture = "fused"
    checks_values = True  # of its input, in evaluation mode; whoever scales the input itself need not

    def __init__(
        self, num_classes: int = 400, streams: Sequence[Stream] = ("rgb", "flow"), dropout: float = 0.5
    ) -> None:
        super().__init__()
        check_arguments(num_classes, dropout)
        self.streams = check_streams(streams)
        self.num_classes = num_classes
        for stream in self.streams:
            self.add_module(stream, Inception(STREAM_CHANNELS[stream] * FRAMES[stream] // SNIPPETS, 2))
        self.fusion = ConvUnit(len(self.streams) * Inception.OUT_CHANNELS, _FUSED_CHANNELS, (3, 3, 3))
        self.pool = MaxPool((3, 3, 3), (2, 2, 2))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(_FUSED_CHANNELS, num_classes)
        initialise(self.head)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Class logits.

        Args:
            inputs: one of each stream, rgb [B, 3, 5, H, W] before flow [B, 2, 50, H, W]: floats in [-1, 1], H and W at
                least 32 and the same in both. Flows 10 · i up to 10 · i + 9 belong to frame i.

        Returns:
            [B, num_classes].

        Raises:
            ValueError: if an input is none of this, or (in evaluation mode) has values that are not scaled to [-1, 1].
        """
        checks = self.checks_values and not self.training
        check_inputs(
            inputs,
            self.streams,
            "3D-Fused",
            FRAMES,
            minimum_side=MINIMUM_SIDE,
            check_values=checks,
        )
        features = []
        for stream, x in zip(self.streams, inputs, strict=True):
            maps = self.get_submodule(stream)(as_pictures(x, SNIPPETS))  # [B · 5, 1024, ceil(H/32), ceil(W/32)]
            features.append(maps.unflatten(0, (-1, SNIPPETS)).transpose(1, 2))
        fused = self.pool(self.fusion(torch.cat(features, dim=1)))  # [B, 512, 3, …]
        logits: Tensor = self.head(self.dropout(fused.mean(dim=(2, 3, 4))))
        return logits
