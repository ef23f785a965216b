"""3D-ConvNet (section 2.2): the small variation of C3D (Tran et al., 2015) that the paper trains from scratch.

Batch normalisation follows each convolution and fully connected layer, and the first pool halves time as well. What the
paper leaves open:

- Batch normalisation has an offset and no scale, as in the released I3D; the layers before it have no bias.
- Pools round up (SAME padding), the last one thereby from 1x7x7 to 1x4x4, the size that C3D's fc6 takes.
- Dropout follows both hidden fully connected layers, as in C3D.
- The network takes flow as well; the paper trained it on RGB alone.
"""

from torch import Tensor, nn

from model.layers import (
    Architecture,
    ConvUnit,
    MaxPool,
    OffsetBatchNorm,
    Stream,
    check_arguments,
    check_input,
    initialise,
    stream_of,
)

FRAMES = 16
SIDE_PIXELS = 112

# Output channels of the convolutions between pools.
_STAGES = {
    "1": {"conv1a": 64},
    "2": {"conv2a": 128},
    "3": {"conv3a": 256, "conv3b": 256},
    "4": {"conv4a": 512, "conv4b": 512},
    "5": {"conv5a": 512, "conv5b": 512},
}
_GRID_CELLS = 1 * 4 * 4  # what five halvings leave of 16 frames of 112x112
_HIDDEN_UNITS = 4096


class C3D(nn.Module):
    """Sixteen consecutive pictures in, class logits out.

    The attributes are C3D's layers in order, `conv1a`, `pool1`, … `fc7`; `head` is the last fully connected one.

    Args:
        num_classes: how many logits.
        in_channels: 3 for RGB, 2 for flow.
        dropout: probability of dropping a hidden unit in training.

    Raises:
        ValueError: for arguments out of range.
    """

    architecture: Architecture = "c3d"
    checks_values = True  # of its input, in evaluation mode; whoever scales the input itself need not

    def __init__(self, num_classes: int = 400, in_channels: int = 3, dropout: float = 0.5) -> None:
        super().__init__()
        check_arguments(num_classes, dropout)
        self.streams: tuple[Stream, ...] = (stream_of(in_channels),)
        self.num_classes = num_classes
        channels = in_channels
        for stage, convolutions in _STAGES.items():
            for name, outputs in convolutions.items():
                self.add_module(name, ConvUnit(channels, outputs, (3, 3, 3)))
                channels = outputs
            self.add_module(f"pool{stage}", MaxPool((2, 2, 2), (2, 2, 2)))
        self.flatten = nn.Flatten()
        self.fc6 = _fully_connected(channels * _GRID_CELLS, dropout)
        self.fc7 = _fully_connected(_HIDDEN_UNITS, dropout)
        self.head = nn.Linear(_HIDDEN_UNITS, num_classes)
        initialise(self.head)

    def forward(self, x: Tensor) -> Tensor:
        """Class logits.

        Args:
            x: [B, in_channels, 16, 112, 112] floats in [-1, 1]; B at least 2 in training.

        Returns:
            [B, num_classes].

        Raises:
            ValueError: if `x` is none of this, or (in evaluation mode) has values that are not scaled to [-1, 1].
        """
        checks = self.checks_values and not self.training
        check_input(
            x,
            self.streams[0],
            "3D-ConvNet",
            frames=FRAMES,
            side=SIDE_PIXELS,
            check_values=checks,
        )
        for layer in self.children():  # in the order in which they were made
            x = layer(x)
        return x


def _fully_connected(in_features: int, dropout: float) -> nn.Sequential:
    linear = nn.Linear(in_features, _HIDDEN_UNITS, bias=False)
    initialise(linear)
    return nn.Sequential(linear, OffsetBatchNorm(_HIDDEN_UNITS), nn.ReLU(), nn.Dropout(dropout))
