"""ConvNet+LSTM (section 2.1): an Inception-v1 of each picture, and an LSTM with batch normalisation over time.

The LSTM is that of Cooijmans et al. (2016), "Recurrent Batch Normalization". Where the paper is silent:

- Each time step has running statistics of its own, as they propose, because the first steps differ from the later ones;
  steps beyond those of training take the last one's. So training is always on as many frames.
- The scales of the normalisations begin with 0.1, as they propose: with 1 the gates saturate and gradients vanish. The
  gates' bias, which stands for both offsets that would be redundant, begins with 0, and with 1 for the forget gate, as
  in the LSTMs of TensorFlow. The recurrent weights begin as a random orthogonal matrix a gate.
- Dropout is before the fully connected layer, as in the other networks.
- The network takes flow as well, one picture of it a step; the paper trained it on RGB alone.
"""

import torch
from torch import Tensor, nn

from model.inception import MINIMUM_SIDE, Inception
from model.layers import (
    Architecture,
    BatchNorm,
    Stream,
    as_pictures,
    check_arguments,
    check_input,
    initialise,
    stream_of,
)

TRAINING_FRAMES = 25
HIDDEN_UNITS = 512


class ConvNetLSTM(nn.Module):
    """Pictures of a video in, class logits after each or after the last out.

    `body` is the network of pictures, `lstm` the recurrent layer, `head` the fully connected one.

    Args:
        num_classes: how many logits.
        in_channels: 3 for RGB, 2 for flow.
        dropout: probability of dropping a hidden unit's output in training.

    Raises:
        ValueError: for arguments out of range.
    """

    architecture: Architecture = "lstm"
    checks_values = True  # of its input, in evaluation mode; whoever scales the input itself need not

    def __init__(self, num_classes: int = 400, in_channels: int = 3, dropout: float = 0.5) -> None:
        super().__init__()
        check_arguments(num_classes, dropout)
        self.streams: tuple[Stream, ...] = (stream_of(in_channels),)
        self.num_classes = num_classes
        self.body = Inception(in_channels, 2)
        self.lstm = BatchNormLSTM(Inception.OUT_CHANNELS, HIDDEN_UNITS, TRAINING_FRAMES)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(HIDDEN_UNITS, num_classes)
        initialise(self.head)

    def forward(self, x: Tensor) -> Tensor:
        """Class logits of all time steps in training, of the last one in evaluation mode.

        Args:
            x: [B, in_channels, T, H, W] floats in [-1, 1], every fifth picture of a video; H and W at least 32. In
                training B is at least 2 and T is 25; a test takes any T, 50 in the paper.

        Returns:
            [B, num_classes, T] in training mode, to take the loss at all; [B, num_classes] in evaluation mode.

        Raises:
            ValueError: if `x` is none of this, or (in evaluation mode) has values that are not scaled to [-1, 1].
        """
        check_input(
            x,
            self.streams[0],
            "ConvNet+LSTM in training" if self.training else "ConvNet+LSTM",
            frames=TRAINING_FRAMES if self.training else None,
            minimum_side=MINIMUM_SIDE,
            check_values=self.checks_values and not self.training,
        )
        return self.classify(self.picture_features(x))

    def picture_features(self, x: Tensor) -> Tensor:
        """What the network of pictures sees in each, by itself.

        Args:
            x: [B, in_channels, T, H, W], as for `forward`.

        Returns:
            [B, T, 1024].
        """
        frames = x.shape[2]
        features: Tensor = self.body(as_pictures(x, frames)).mean(dim=(2, 3))
        return features.view(len(x), frames, -1)

    def classify(self, features: Tensor) -> Tensor:
        """Class logits, as of `forward`, from the features [B, T, 1024] of all pictures."""
        hidden = self.lstm(features)  # [B, T, 512]
        if not self.training:
            hidden = hidden[:, -1:]
        logits: Tensor = self.head(self.dropout(hidden)).transpose(1, 2)
        return logits if self.training else logits[:, :, 0]


class BatchNormLSTM(nn.Module):
    """An LSTM whose input, recurrent term and cell are batch-normalised, each by itself.

    With i, f, g, o = BN(W_x · x) + BN(W_h · h) + bias of input gate, forget gate, candidate and output gate:
    c ← σ(f) · c + σ(i) · tanh(g), and h ← σ(o) · tanh(BN(c)).

    Args:
        in_features: of the input.
        hidden_units: of cell and output.
        steps: how many time steps have statistics of their own.
    """

    def __init__(self, in_features: int, hidden_units: int, steps: int) -> None:
        super().__init__()
        gates = 4 * hidden_units
        self.hidden_units = hidden_units
        self.input = nn.Linear(in_features, gates, bias=False)
        self.recurrent = nn.Linear(hidden_units, gates, bias=False)
        self.bias = nn.Parameter(torch.zeros(gates))
        self.input_norm = StepNorm(gates, steps)
        self.recurrent_norm = StepNorm(gates, steps)
        self.cell_norm = StepNorm(hidden_units, steps)
        self.cell_offset = nn.Parameter(torch.zeros(hidden_units))
        initialise(self.input)
        with torch.no_grad():
            for gate in self.recurrent.weight.chunk(4):
                nn.init.orthogonal_(gate)
            self.bias[hidden_units : 2 * hidden_units] = 1

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, in_features] → [B, T, hidden_units], from a state of zeros."""
        inputs = self.input(x)
        # Of the weights' dtype, so that under autocast the cell keeps adding up in float32.
        cell = hidden = self.bias.new_zeros(len(x), self.hidden_units)
        outputs = []
        for step in range(x.shape[1]):
            gates = self.input_norm(inputs[:, step], step, self.bias)
            gates = gates + self.recurrent_norm(self.recurrent(hidden), step)
            into, keep, candidate, out = gates.chunk(4, dim=1)
            cell = torch.sigmoid(keep) * cell + torch.sigmoid(into) * torch.tanh(candidate)
            hidden = torch.sigmoid(out) * torch.tanh(self.cell_norm(cell, step, self.cell_offset))
            outputs.append(hidden)
        return torch.stack(outputs, dim=1)


class StepNorm(nn.Module):
    """Batch normalisation with one scale for all time steps, and statistics of each.

    Args:
        channels: of the input.
        steps: how many time steps have statistics of their own; the last one's are those of all later ones.
    """

    def __init__(self, channels: int, steps: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels,), 0.1))
        self.of_step = nn.ModuleList(BatchNorm(channels) for _ in range(steps))

    def forward(self, x: Tensor, step: int, offset: Tensor | None = None) -> Tensor:
        """[B, channels] of a time step from 0 → the same shape."""
        norm = self.of_step[min(step, len(self.of_step) - 1)]
        assert isinstance(norm, BatchNorm)
        return norm.normalise(x, self.scale, offset)
