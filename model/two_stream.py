"""Two-Stream (section 2.3): an Inception-v1 of one RGB frame, and one of ten flows, whose predictions are averaged.

After Simonyan & Zisserman (2014). Where the paper is silent: the predictions that are averaged are the logits, as the
released I3D joins its streams (there by their sum); so one loss of the averaged logits trains both networks at once,
and in a test either stream of a network that was trained on both can be looked at alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.inception import MINIMUM_SIDE, InceptionV1
from model.layers import (
    STREAM_CHANNELS,
    Architecture,
    Stream,
    as_pictures,
    check_arguments,
    check_inputs,
    check_streams,
)

FRAMES: dict[Stream, int] = {"rgb": 1, "flow": 10}


class TwoStream(nn.Module):
    """One RGB frame and the ten flows from it on in, class logits out; or one of both alone.

    `rgb` and `flow` are the streams' networks.

    Args:
        num_classes: how many logits.
        streams: "rgb", "flow" or both in this order.
        dropout: probability of dropping a feature in training.

    Raises:
        ValueError: for arguments out of range.
    """

    architecture: Architecture = "two-stream"
    checks_values = True  # of its input, in evaluation mode; whoever scales the input itself need not

    def __init__(
        self, num_classes: int = 400, streams: Sequence[Stream] = ("rgb", "flow"), dropout: float = 0.5
    ) -> None:
        super().__init__()
        check_arguments(num_classes, dropout)
        self.streams = check_streams(streams)
        self.num_classes = num_classes
        for stream in self.streams:
            self.add_module(stream, InceptionV1(num_classes, STREAM_CHANNELS[stream] * FRAMES[stream], dropout))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Class logits, averaged over the streams.

        Args:
            inputs: one of each stream, rgb [B, 3, 1, H, W] before flow [B, 2, 10, H, W]: floats in [-1, 1], H and W at
                least 32 and the same in both.

        Returns:
            [B, num_classes].

        Raises:
            ValueError: if an input is none of this, or (in evaluation mode) has values that are not scaled to [-1, 1].
        """
        checks = self.checks_values and not self.training
        check_inputs(
            inputs,
            self.streams,
            "Two-Stream",
            FRAMES,
            minimum_side=MINIMUM_SIDE,
            check_values=checks,
        )
        logits = [self.get_submodule(stream)(as_pictures(x, 1)) for stream, x in zip(self.streams, inputs, strict=True)]
        return torch.stack(logits).mean(dim=0)
