"""I3D, the inflated Inception-v1 of "Quo Vadis, Action Recognition?" (Carreira & Zisserman, 2017; section 3, figure 3).

Where the paper leaves a choice open, this is the network that DeepMind released (google-deepmind/kinetics-i3d,
`i3d.py`): its endpoint names, its SAME padding that depends on the size of the input, its batch normalisation without
a scale, its average of the logits over time. With the released weights it gives the released logits.
"""

from collections import OrderedDict
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

TemporalPadding = Literal["zero", "replicate"]

MINIMUM_FRAMES = 9  # gives two time steps, the extent of the average pool
MINIMUM_SIDE = 32  # the spatial stride of the network: a smaller picture is less than one cell of its last grid
_LARGEST_MAGNITUDE = 1.01  # 1 plus the rounding of half precision and of resizing

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


def check_range(x: Tensor) -> None:
    """Refuses an input that is clearly not scaled to [-1, 1], such as one in [0, 255].

    An input in [0, 1] cannot be told from a bright video and passes.

    Args:
        x: a float tensor of any shape.

    Raises:
        ValueError: if a value is outside [-1.01, 1.01] or is not a number.
    """
    low, high = (bound.item() for bound in x.detach().aminmax())
    if not (low >= -_LARGEST_MAGNITUDE and high <= _LARGEST_MAGNITUDE):  # so written, it refuses NaN too
        raise ValueError(f"input values are in [{low:g}, {high:g}], they must be scaled to [-1, 1]")


class I3D(nn.Module):
    """One stream of the two-stream I3D: video or flow in, class logits out.

    The attributes are the released network's endpoints, in order: `Conv3d_1a_7x7`, `MaxPool3d_2a_3x3`, … `Mixed_5c`;
    `Logits` is the last 1x1x1 convolution. Two streams are joined by adding their logits before the softmax.

    Args:
        num_classes: how many logits.
        in_channels: 3 for RGB, 2 for flow.
        dropout: probability of dropping a feature in training (0.5: the released training).
        temporal_padding: what SAME padding fills in beyond the first and last frame. "zero" is the released network.
            "replicate" repeats the border frame, with which a constant video gives the same features at any length:
            the "boring video" fixed point of section 3. Space is always padded with zeros.

    Raises:
        ValueError: for arguments out of range.
    """

    ENDPOINTS: tuple[str, ...] = (
        "Conv3d_1a_7x7",
        "MaxPool3d_2a_3x3",
        "Conv3d_2b_1x1",
        "Conv3d_2c_3x3",
        "MaxPool3d_3a_3x3",
        "Mixed_3b",
        "Mixed_3c",
        "MaxPool3d_4a_3x3",
        "Mixed_4b",
        "Mixed_4c",
        "Mixed_4d",
        "Mixed_4e",
        "Mixed_4f",
        "MaxPool3d_5a_2x2",
        "Mixed_5b",
        "Mixed_5c",
    )

    def __init__(
        self,
        num_classes: int = 400,
        in_channels: int = 3,
        dropout: float = 0.5,
        temporal_padding: TemporalPadding = "zero",
    ) -> None:
        super().__init__()
        if num_classes < 1 or in_channels < 1:
            raise ValueError(f"num_classes {num_classes} and in_channels {in_channels} must be at least 1")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout {dropout} is the probability of dropping, it must be in [0, 1)")
        if temporal_padding not in get_args(TemporalPadding):
            raise ValueError(f"temporal_padding {temporal_padding!r} must be one of {get_args(TemporalPadding)}")
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.temporal_padding: TemporalPadding = temporal_padding

        def mixed(name: str, inputs: int) -> MixedModule:
            return MixedModule(inputs, _MIXED_CHANNELS[name], temporal_padding)

        self.Conv3d_1a_7x7 = ConvUnit(in_channels, 64, 7, stride=2, temporal_padding=temporal_padding)
        self.MaxPool3d_2a_3x3 = MaxPool((1, 3, 3), (1, 2, 2))
        self.Conv3d_2b_1x1 = ConvUnit(64, 64, 1, temporal_padding=temporal_padding)
        self.Conv3d_2c_3x3 = ConvUnit(64, 192, 3, temporal_padding=temporal_padding)
        self.MaxPool3d_3a_3x3 = MaxPool((1, 3, 3), (1, 2, 2))
        self.Mixed_3b = mixed("Mixed_3b", 192)
        self.Mixed_3c = mixed("Mixed_3c", 256)
        self.MaxPool3d_4a_3x3 = MaxPool((3, 3, 3), (2, 2, 2))
        self.Mixed_4b = mixed("Mixed_4b", 480)
        self.Mixed_4c = mixed("Mixed_4c", 512)
        self.Mixed_4d = mixed("Mixed_4d", 512)
        self.Mixed_4e = mixed("Mixed_4e", 512)
        self.Mixed_4f = mixed("Mixed_4f", 528)
        self.MaxPool3d_5a_2x2 = MaxPool((2, 2, 2), (2, 2, 2))
        self.Mixed_5b = mixed("Mixed_5b", 832)
        self.Mixed_5c = mixed("Mixed_5c", 832)
        self.dropout = nn.Dropout(dropout)
        self.Logits = nn.Conv3d(1024, num_classes, 1)
        _initialise(self.Logits)

    def forward(self, x: Tensor) -> Tensor:
        """Class logits, averaged over time.

        In evaluation mode the range of the values is checked too, because there a mistake is silent: the released RGB
        network still names the right class with badly scaled input, only less often. Training pays no such pass over
        each batch; a trainer calls `check_range` where it decodes.

        Args:
            x: [B, in_channels, T, H, W] floats in [-1, 1]; T at least 9, H and W at least 32.

        Returns:
            [B, num_classes].

        Raises:
            ValueError: if `x` has another rank, channel count or dtype, is too small, or (in evaluation mode) has
                values clearly outside [-1, 1].
        """
        return self.logits_per_step(x).mean(dim=2)

    def logits_per_step(self, x: Tensor) -> Tensor:
        """Class logits of each time step; `forward` is their mean.

        Pictures larger than 224x224 have several positions of the 7x7 average pool; their logits are averaged.

        Args:
            x: as for `forward`.

        Returns:
            [B, num_classes, T'] with T' = ceil(T / 8) - 1, one step every 8 frames.

        Raises:
            ValueError: as `forward`.
        """
        features = self.endpoint(x, self.ENDPOINTS[-1])  # [B, 1024, ceil(T/8), ceil(H/32), ceil(W/32)]
        height, width = features.shape[3:]
        pooled = F.avg_pool3d(features, (2, min(7, height), min(7, width)), stride=1)
        logits: Tensor = self.Logits(self.dropout(pooled))
        return logits.mean(dim=(3, 4))

    def endpoint(self, x: Tensor, name: str) -> Tensor:
        """The activation of a named endpoint; nothing after it is computed.

        Args:
            x: as for `forward`.
            name: one of `I3D.ENDPOINTS`.

        Returns:
            [B, C, T', H', W'].

        Raises:
            ValueError: if there is no such endpoint, and as `forward`.
        """
        if name not in self.ENDPOINTS:
            raise ValueError(f"no endpoint {name!r}; there are {', '.join(self.ENDPOINTS)}")
        self._check_input(x)
        for endpoint in self.ENDPOINTS[: self.ENDPOINTS.index(name) + 1]:
            x = self.get_submodule(endpoint)(x)
        return x

    def _check_input(self, x: Tensor) -> None:
        if x.ndim != 5:
            raise ValueError(f"input has shape {list(x.shape)}, it must be [B, {self.in_channels}, T, H, W]")
        if x.shape[1] != self.in_channels:
            raise ValueError(f"input has {x.shape[1]} channels, this network takes {self.in_channels}")
        if not x.is_floating_point():
            raise ValueError(f"input is {x.dtype}, it must be floats scaled to [-1, 1]")
        if x.shape[2] < MINIMUM_FRAMES:
            raise ValueError(f"input has {x.shape[2]} frames, I3D needs at least {MINIMUM_FRAMES}")
        if min(x.shape[3:]) < MINIMUM_SIDE:
            raise ValueError(f"input has {x.shape[3]}x{x.shape[4]} pixels, I3D needs at least {MINIMUM_SIDE} a side")
        # Neither a tensor without data nor a traced graph can be asked for its values.
        if not (self.training or x.is_meta or x.numel() == 0 or torch.compiler.is_compiling()):
            check_range(x)


class ConvUnit(nn.Module):
    """Convolution with SAME padding and without bias, batch normalisation, ReLU: the released `Unit3D`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        temporal_padding: TemporalPadding,
    ) -> None:
        super().__init__()
        self.temporal_padding = temporal_padding
        self.conv = nn.Conv3d(in_channels, out_channels, kernel_size, stride, bias=False)
        self.norm = OffsetBatchNorm(out_channels)
        _initialise(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, T, H, W] → [B, out_channels, ceil(T/stride), ceil(H/stride), ceil(W/stride)]."""
        kernel, stride = self.conv.kernel_size, self.conv.stride
        time, height, width = (_same_padding(n, k, s) for n, k, s in zip(x.shape[2:], kernel, stride, strict=True))
        if self.temporal_padding == "replicate" and time != (0, 0):
            x = F.pad(x, (0, 0, 0, 0, *time), mode="replicate")
            time = (0, 0)
        # The convolution itself pads both ends alike without a copy; only unequal ends need one.
        inside = [before if before == after else 0 for before, after in (time, height, width)]
        outside = [end for pair in (width, height, time) for end in (pair if pair[0] != pair[1] else (0, 0))]
        if any(outside):
            x = F.pad(x, outside)
        x = F.conv3d(x, self.conv.weight, None, stride, inside)
        return F.relu_(self.norm(x))


class OffsetBatchNorm(nn.Module):
    """Batch normalisation over [B, C, T, H, W] with a learned offset and no scale, as the released network has it.

    Sonnet's `BatchNorm` has no scale by default, epsilon 1e-3 and a decay of 0.999, which is torch's momentum 0.001.
    """

    EPSILON = 1e-3

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.momentum = 1e-3
        self.synchronised = False  # in training, normalise over the batches of all processes of torch.distributed
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] → the same shape; updates the running statistics in training mode."""
        if self.synchronised and self.training:
            return self._over_all_processes(x)
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            None,
            self.bias,
            self.training,
            self.momentum,
            self.EPSILON,
        )

    def _over_all_processes(self, x: Tensor) -> Tensor:
        """As one process would do it with all batches; torch's own is for GPUs alone, and wants a scale."""
        dims, values = (0, 2, 3, 4), x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        count = torch.tensor([float(x.numel() // x.shape[1])], dtype=values.dtype, device=x.device)
        sums: Tensor = all_reduce(torch.cat([values.sum(dims), count]))  # type: ignore[no-untyped-call]
        mean = sums[:-1] / sums[-1]
        centred = values - mean.view(-1, 1, 1, 1)
        variance: Tensor = all_reduce(centred.square().sum(dims)) / sums[-1]  # type: ignore[no-untyped-call]
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (sums[-1] / (sums[-1] - 1)), self.momentum)
        scale = torch.rsqrt(variance + self.EPSILON)
        return (centred * scale.view(-1, 1, 1, 1) + self.bias.view(-1, 1, 1, 1)).to(x.dtype)


def synchronise_batch_norm(network: nn.Module) -> None:
    """From now on batches are normalised over all processes of `torch.distributed`, in training."""
    for module in network.modules():
        if isinstance(module, OffsetBatchNorm):
            module.synchronised = True


class MaxPool(nn.Module):
    """Max-pooling with SAME padding, for kernels that are at least as long as their stride."""

    def __init__(self, kernel_size: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] → [B, C, ceil(T/stride), ceil(H/stride), ceil(W/stride)]."""
        sizes = zip(x.shape[2:], self.kernel_size, self.stride, strict=True)
        before = [_same_padding(n, k, s)[0] for n, k, s in sizes]
        # Rounding the output's size up pads the odd pixel at the end, without a copy. Padding never is the maximum, as
        # in TensorFlow; and repeating the border frame, which is in the window, would not change it.
        return F.max_pool3d(x, self.kernel_size, self.stride, before, ceil_mode=True)


class MixedModule(nn.Module):
    """An inflated Inception module: four branches side by side, their channels concatenated.

    Args:
        in_channels: channels of the input.
        channels: output channels of the six convolutions, see `_MIXED_CHANNELS`.
        temporal_padding: as for `I3D`.
    """

    def __init__(
        self,
        in_channels: int,
        channels: tuple[int, int, int, int, int, int],
        temporal_padding: TemporalPadding,
    ) -> None:
        super().__init__()

        def unit(inputs: int, outputs: int, kernel_size: int) -> ConvUnit:
            return ConvUnit(inputs, outputs, kernel_size, temporal_padding=temporal_padding)

        def branch(**layers: nn.Module) -> nn.Sequential:
            return nn.Sequential(OrderedDict(layers))

        self.branch_0 = branch(Conv3d_0a_1x1=unit(in_channels, channels[0], 1))
        self.branch_1 = branch(
            Conv3d_0a_1x1=unit(in_channels, channels[1], 1),
            Conv3d_0b_3x3=unit(channels[1], channels[2], 3),
        )
        self.branch_2 = branch(
            Conv3d_0a_1x1=unit(in_channels, channels[3], 1),
            Conv3d_0b_3x3=unit(channels[3], channels[4], 3),
        )
        self.branch_3 = branch(
            MaxPool3d_0a_3x3=MaxPool((3, 3, 3), (1, 1, 1)),
            Conv3d_0b_1x1=unit(in_channels, channels[5], 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, T, H, W] → [B, sum of the branches' channels, T, H, W]."""
        return torch.cat([self.branch_0(x), self.branch_1(x), self.branch_2(x), self.branch_3(x)], dim=1)


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Padding before and after, by TensorFlow's rule: ceil(size / stride) outputs, the odd pixel at the end."""
    outputs = -(-size // stride)
    total = max((outputs - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _initialise(conv: nn.Conv3d) -> None:
    """Truncated normal of deviation 1 / sqrt(fan-in), cut at two deviations; a zero bias: Sonnet's default.

    It is how the released networks began. Behind a batch normalisation the scale of weights does not change the
    output, but it sets how far a step of a given learning rate turns them: the released schedule belongs to it.
    """
    deviation = conv.weight[0].numel() ** -0.5
    nn.init.trunc_normal_(conv.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
