"""Layers that the architectures share: as DeepMind released them, in two dimensions and in three."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

Architecture = Literal["lstm", "c3d", "two-stream", "fused", "i3d"]
Stream = Literal["rgb", "flow"]
TemporalPadding = Literal["zero", "replicate"]

STREAM_CHANNELS: dict[Stream, int] = {"rgb": 3, "flow": 2}

NetworkT = TypeVar("NetworkT", bound=nn.Module)

_LARGEST_MAGNITUDE = 1.01  # 1 plus the rounding of half precision and of resizing


def stream_of(in_channels: int) -> Stream:
    """The stream whose pictures have so many channels.

    Raises:
        ValueError: if neither has.
    """
    for stream, channels in STREAM_CHANNELS.items():
        if channels == in_channels:
            return stream
    raise ValueError(f"in_channels {in_channels} must be 3 (RGB) or 2 (flow)")


def check_streams(streams: Sequence[Stream]) -> tuple[Stream, ...]:
    """The streams of a network that can have both.

    Raises:
        ValueError: if they are neither one of "rgb" and "flow" nor both in this order.
    """
    if tuple(streams) not in (("rgb",), ("flow",), ("rgb", "flow")):
        raise ValueError(f"streams {tuple(streams)} must be rgb, flow, or both in this order")
    return tuple(streams)


def check_arguments(num_classes: int, dropout: float) -> None:
    """Refuses what no network can be built with.

    Raises:
        ValueError: if there is no class, or `dropout` is not in [0, 1).
    """
    if num_classes < 1:
        raise ValueError(f"num_classes {num_classes} must be at least 1")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout {dropout} is the probability of dropping, it must be in [0, 1)")


def check_input(
    x: Tensor,
    stream: Stream,
    network: str,
    *,
    frames: int | None = None,
    minimum_frames: int = 1,
    side: int | None = None,
    minimum_side: int = 1,
    check_values: bool = False,
) -> None:
    """Refuses a batch of videos that a network does not take.

    Args:
        x: should be [B, C, T, H, W] floats in [-1, 1].
        stream: which of a network's inputs it is.
        network: the network's name, for the message.
        frames: T, where the network takes no other.
        minimum_frames: the smallest T.
        side: H and W in pixels, where the network takes no other.
        minimum_side: the smallest H and W.
        check_values: look at the values too, by `check_range`, which is a pass over them.

    Raises:
        ValueError: with what was found and what would be right.
    """
    channels = STREAM_CHANNELS[stream]
    if x.ndim != 5:
        raise ValueError(f"{stream} input has shape {list(x.shape)}, it must be [B, {channels}, T, H, W]")
    if x.shape[1] != channels:
        raise ValueError(f"{stream} input has {x.shape[1]} channels, this network takes {channels}")
    if not x.is_floating_point():
        raise ValueError(f"{stream} input is {x.dtype}, it must be floats scaled to [-1, 1]")
    there, height, width = x.shape[2:]
    if frames is not None and there != frames:
        raise ValueError(f"{stream} input has {there} frames, {network} takes {frames}")
    if there < minimum_frames:
        raise ValueError(f"{stream} input has {there} frames, {network} needs at least {minimum_frames}")
    if side is not None and (height, width) != (side, side):
        raise ValueError(f"{stream} input has {height}x{width} pixels, {network} takes {side}x{side}")
    if min(height, width) < minimum_side:
        raise ValueError(f"{stream} input has {height}x{width} pixels, {network} needs at least {minimum_side} a side")
    # Neither a tensor without data nor a traced graph can be asked for its values.
    if check_values and not (x.is_meta or x.numel() == 0 or torch.compiler.is_compiling()):
        check_range(x, stream)


def check_inputs(
    inputs: Sequence[Tensor],
    streams: Sequence[Stream],
    network: str,
    frames: Mapping[Stream, int],
    *,
    minimum_side: int,
    check_values: bool,
) -> None:
    """Refuses batches that a network of several streams does not take; as `check_input` for each, and they must match.

    Args:
        inputs: one batch a stream.
        streams: what the inputs should be, in this order.
        network: the network's name, for the message.
        frames: T of each stream.
        minimum_side: the smallest H and W.
        check_values: look at the values too.

    Raises:
        ValueError: with what was found and what would be right.
    """
    if len(inputs) != len(streams):
        raise ValueError(f"{len(inputs)} inputs, {network} takes one of each stream: {', '.join(streams)}")
    for stream, x in zip(streams, inputs, strict=True):
        check_input(x, stream, network, frames=frames[stream], minimum_side=minimum_side, check_values=check_values)
    sizes = {(len(x), *x.shape[3:]) for x in inputs}
    if len(sizes) > 1:
        found = ", ".join(f"{stream} {list(x.shape)}" for stream, x in zip(streams, inputs, strict=True))
        raise ValueError(f"inputs of different batches or sizes: {found}")


def check_range(x: Tensor, stream: Stream | None = None) -> None:
    """Refuses an input that is not scaled to [-1, 1]: one in [0, 255] and, where the stream is known, one in [0, 1].

    Values from 0 to 1 are possible in [-1, 1] too, so more is asked before they are refused. Of RGB, that some are
    near 0 and some above 0.5: taken for [-1, 1], that is a video without a pixel darker than mid-grey whose darkest is
    nearly mid-grey. Of flow, that the mean is about 0.5: taken for [-1, 1], a motion of 10 pixels a frame, to the right
    and down, all over.

    Args:
        x: a float tensor of any shape.
        stream: what it is; None leaves [0, 1] out.

    Raises:
        ValueError: if a value is outside [-1.01, 1.01] or is not a number, or all seem to be in [0, 1].
    """
    low, high = (bound.item() for bound in x.detach().aminmax())
    if not (low >= -_LARGEST_MAGNITUDE and high <= _LARGEST_MAGNITUDE):  # so written, it refuses NaN too
        raise ValueError(f"input values are in [{low:g}, {high:g}], they must be scaled to [-1, 1]")
    if low < 0 or stream is None:
        return
    if (low < 0.05 and high > 0.5) if stream == "rgb" else (0.4 < x.detach().float().mean().item() < 0.6):
        raise ValueError(
            f"{stream} input values are in [{low:g}, {high:g}], as if scaled to [0, 1], they must be scaled to [-1, 1]"
        )


def as_pictures(x: Tensor, pictures: int) -> Tensor:
    """Videos cut in time into pictures, so that a network of pictures can take them.

    Args:
        x: [B, C, T, H, W]; `pictures` divides T.
        pictures: how many each video is cut into.

    Returns:
        [B · pictures, T / pictures · C, H, W]: the pictures of a video follow each other; each has the channels of its
        first frame, then of its second, and so on (of flow: x and y of flow 1, x and y of flow 2, …).
    """
    batch, channels, frames, height, width = x.shape
    stacked = frames // pictures * channels
    return x.transpose(1, 2).reshape(batch * pictures, stacked, height, width)


class ConvUnit(nn.Module):
    """Convolution with SAME padding and without bias, batch normalisation, ReLU: the released `Unit3D`.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: extents in time, height and width; or in height and width, of pictures.
        stride: as many numbers; 1 by default.
        temporal_padding: see `model.I3D`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, ...],
        stride: tuple[int, ...] | None = None,
        temporal_padding: TemporalPadding = "zero",
    ) -> None:
        super().__init__()
        self.temporal_padding = temporal_padding
        convolution: type[nn.Conv2d | nn.Conv3d] = nn.Conv2d if len(kernel_size) == 2 else nn.Conv3d
        self.conv = convolution(in_channels, out_channels, kernel_size, stride or 1, bias=False)  # type: ignore[arg-type]
        self.norm: nn.Module = OffsetBatchNorm(out_channels)
        initialise(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, …] → [B, out_channels, …], each axis of n as long as ceil(n / stride)."""
        kernel, stride = self.conv.kernel_size, self.conv.stride
        paddings = [same_padding(n, k, s) for n, k, s in zip(x.shape[2:], kernel, stride, strict=True)]
        if self.temporal_padding == "replicate" and len(paddings) == 3 and paddings[0] != (0, 0):
            x = F.pad(x, (0, 0, 0, 0, *paddings[0]), mode="replicate")
            paddings[0] = (0, 0)
        # The convolution itself pads both ends alike without a copy; only unequal ends need one.
        inside = [before if before == after else 0 for before, after in paddings]
        outside = [end for pair in reversed(paddings) for end in (pair if pair[0] != pair[1] else (0, 0))]
        if any(outside):
            x = F.pad(x, outside)
        y = self._convolve(x, inside)
        # torch's convolution of a small tensor does not keep the layout, and all that follows would be slower.
        y = y.contiguous(memory_format=torch.channels_last if y.ndim == 4 else torch.channels_last_3d)
        return F.relu_(self.norm(y))

    def _convolve(self, x: Tensor, padding: list[int]) -> Tensor:
        weight, bias = self.conv.weight, self.conv.bias
        if max(self.conv.kernel_size + self.conv.stride) == 1:  # a matrix product, where channels are last in memory
            return F.linear(x.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)
        convolve = F.conv2d if len(padding) == 2 else F.conv3d
        return convolve(x, weight, bias, self.conv.stride, padding)


class BatchNorm(nn.Module):
    """Statistics of batch normalisation over [B, C, …]; what is learned belongs to who calls `normalise`.

    Sonnet's `BatchNorm` has epsilon 1e-3 and a decay of 0.999, which is torch's momentum 0.001.
    """

    EPSILON = 1e-3

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.momentum = 1e-3
        self.synchronised = False  # in training, normalise over the batches of all processes of torch.distributed
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def normalise(self, x: Tensor, scale: Tensor | None, offset: Tensor | None) -> Tensor:
        """[B, C, …] → the same shape, of mean `offset` and deviation `scale`, [C] each; without them 0 and 1.

        Updates the running statistics in training mode.

        Raises:
            ValueError: in training mode, if there is one value a channel, which has no deviation.
        """
        if self.synchronised and self.training:
            return self._over_all_processes(x, scale, offset)
        if self.training and x.numel() == x.shape[1]:
            raise ValueError("one value a channel has no deviation to normalise by: train on batches of at least 2")
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            scale,
            offset,
            self.training,
            self.momentum,
            self.EPSILON,
        )

    def _over_all_processes(self, x: Tensor, scale: Tensor | None, offset: Tensor | None) -> Tensor:
        """As one process would do it with all batches; torch's own is for GPUs alone, and wants a scale."""
        dims, of_channels = (0, *range(2, x.ndim)), (-1, *[1] * (x.ndim - 2))
        values = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        count = torch.tensor([float(x.numel() // x.shape[1])], dtype=values.dtype, device=x.device)
        sums: Tensor = _SumOverRanks.apply(torch.cat([values.sum(dims), count]))  # type: ignore[no-untyped-call]
        mean = sums[:-1] / sums[-1]
        centred = values - mean.view(of_channels)
        variance: Tensor = _SumOverRanks.apply(centred.square().sum(dims)) / sums[-1]  # type: ignore[no-untyped-call]
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (sums[-1] / (sums[-1] - 1)), self.momentum)
        factor = torch.rsqrt(variance + self.EPSILON)
        if scale is not None:
            factor = factor * scale
        normalised = centred * factor.view(of_channels)
        if offset is not None:
            normalised = normalised + offset.view(of_channels)
        return normalised.to(x.dtype)


class OffsetBatchNorm(BatchNorm):
    """Batch normalisation over [B, C, …] with a learned offset and no scale, as the released network has it."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, …] → the same shape; see `normalise`."""
        return self.normalise(x, None, self.bias)


class _SumOverRanks(torch.autograd.Function):
    """Sum of a tensor over all processes, each of which has a loss of its own; torch's is deprecated."""

    @staticmethod
    def forward(_: Any, mine: Tensor) -> Tensor:
        total = mine.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        return _SumOverRanks.forward(_, gradients[0])


def synchronise_batch_norm(network: nn.Module) -> None:
    """From now on batches are normalised over all processes of `torch.distributed`, in training."""
    for module in network.modules():
        if isinstance(module, BatchNorm):
            module.synchronised = True


def channels_last(network: NetworkT) -> NetworkT:
    """The same network, its convolutions' weights with channels last in memory, which is faster on CPUs and GPUs."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            module.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        elif isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


class MaxPool(nn.Module):
    """Max-pooling with SAME padding, for kernels that are at least as long as their stride.

    Args:
        kernel_size: extents in time, height and width; or in height and width, of pictures.
        stride: as many numbers.
    """

    def __init__(self, kernel_size: tuple[int, ...], stride: tuple[int, ...]) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, …] → [B, C, …], each axis of n as long as ceil(n / stride)."""
        pixels = x.movedim(1, -1)
        if x.ndim == 5:
            # A maximum over a box is one over time of those over pictures. torch's max-pooling in two dimensions is
            # many times as fast as that in three, and where channels are last in memory both are views of this tensor.
            pictures = _max_pool_2d(pixels.flatten(0, 1), self.kernel_size[1:], self.stride[1:])  # [B · T, H', W', C]
            pixels = pictures.reshape(*pixels.shape[:2], *pictures.shape[1:])
            if self.kernel_size[0] > 1:
                rows = pixels.flatten(2, 3)  # [B, T, H' · W', C]
                rows = _max_pool_2d(rows, (self.kernel_size[0], 1), (self.stride[0], 1))
                pixels = rows.reshape(*rows.shape[:2], *pictures.shape[1:])
        else:
            pixels = _max_pool_2d(pixels, self.kernel_size, self.stride)
        return pixels.movedim(-1, 1)


def _max_pool_2d(x: Tensor, kernel_size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """[N, H, W, C] → [N, H', W', C]."""
    before = [same_padding(*axis)[0] for axis in zip(x.shape[1:3], kernel_size, stride, strict=True)]
    # Rounding the output's size up pads the odd pixel at the end, without a copy. Padding never is the maximum, as in
    # TensorFlow; and repeating the border frame, which is in the window, would not change it.
    return F.max_pool2d(x.movedim(-1, 1), kernel_size, stride, before, ceil_mode=True).movedim(1, -1)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Padding before and after, by TensorFlow's rule: ceil(size / stride) outputs, the odd pixel at the end."""
    outputs = -(-size // stride)
    total = max((outputs - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def initialise(layer: nn.Conv2d | nn.Conv3d | nn.Linear) -> None:
    """Truncated normal of deviation 1 / sqrt(fan-in), cut at two deviations; a zero bias: Sonnet's default.

    It is how the released networks began. Behind a batch normalisation the scale of weights does not change the
    output, but it sets how far a step of a given learning rate turns them: the released schedule belongs to it.
    """
    deviation = layer.weight[0].numel() ** -0.5
    nn.init.trunc_normal_(layer.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
