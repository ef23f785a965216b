"""Networks of videos from networks of pictures (paper, section 2.4).

Inflation gives every N x N filter and pooling window an extent of N in time and every stride in space the same stride
in time, repeats the filters' weights N times along time and divides them by N. A video that repeats one picture (a
"boring video") then has the activations of that picture, if what a filter finds before the first frame and after the
last is the picture too: `temporal_padding="replicate"`.
"""

import copy
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.i3d import I3D
from model.inception import Inception, InceptionV1
from model.layers import ConvUnit, MaxPool, TemporalPadding

# Of I3D: the first two pools of Inception-v1 leave time alone, everything else treats it as it treats space (section
# 2.4, "Pacing receptive field growth").
I3D_IN_TIME: Mapping[str, tuple[int, int]] = MappingProxyType(
    {"MaxPool2d_2a_3x3": (1, 1), "MaxPool2d_3a_3x3": (1, 1)},
)

_INFLATED = (
    ConvUnit,
    MaxPool,
    nn.Conv2d,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.BatchNorm2d,
    nn.Dropout2d,
)


def inflate(
    network: nn.Module,
    in_time: Mapping[str, tuple[int, int]] = MappingProxyType({}),
    temporal_padding: TemporalPadding = "replicate",
) -> nn.Module:
    """A copy of a network of pictures [B, C, H, W] that takes videos [B, C, T, H, W].

    Convolutions, batch normalisations and poolings are exchanged, all other modules stay. So the `forward` of every
    module that holds others must not depend on the number of dimensions: torchvision's ResNets and googlenet qualify,
    and this project's Inception-v1. Time is treated as height is; a global average pool averages over time as well.

    Args:
        network: left as it is; the copy shares no memory with it.
        in_time: name of a convolution or pooling → its extent and stride in time, where they are not those in height.
            A convolution is then padded by half of its extent.
        temporal_padding: what convolutions find beyond the first and the last frame: "zero", or with "replicate" the
            border frame. Max-pools never find anything there.

    Returns:
        The network, all of it trainable, in the mode (training or evaluation) of the given one.

    Raises:
        ValueError: if a layer has no inflated form or is of videos already, or `in_time` names a layer that does not
            exist or an extent of 0.
    """
    kinds = {name: type(layer) for name, layer in network.named_modules()}
    videos = [name for name, kind in kinds.items() if issubclass(kind, (nn.Conv3d, nn.MaxPool3d, nn.AvgPool3d))]
    if videos:
        raise ValueError(f"{videos[0]} is of videos already")
    for name in in_time:
        if not issubclass(kinds.get(name, nn.Module), (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, ConvUnit, MaxPool)):
            raise ValueError(f"in_time names {name!r}, which is no convolution or pooling of the network")
        if min(in_time[name]) < 1:
            raise ValueError(f"in_time gives {name} the extent and stride {in_time[name]}, both must be at least 1")
    with torch.no_grad():
        return _inflated(copy.deepcopy(network), "", in_time, temporal_padding).requires_grad_(True)


def _inflated(
    layer: nn.Module, name: str, in_time: Mapping[str, tuple[int, int]], padding: TemporalPadding
) -> nn.Module:
    kind = type(layer)
    # A subclass may do more than its kind, and what is called …2d is of pictures.
    if kind not in _INFLATED and (isinstance(layer, _INFLATED) or (kind.__name__.endswith("2d") and _is_leaf(layer))):
        raise ValueError(f"{name}: a layer of type {kind.__name__} has no inflated form here")
    inflated: nn.Module
    match layer:
        case ConvUnit():
            extent, stride = in_time.get(name, (layer.conv.kernel_size[0], layer.conv.stride[0]))
            inflated = _inflated_unit(layer, extent, stride, padding)
        case MaxPool():
            extent, stride = in_time.get(name, (layer.kernel_size[0], layer.stride[0]))
            inflated = MaxPool(_extended(extent, layer.kernel_size), _extended(stride, layer.stride))
        case nn.Conv2d():
            inflated = InflatedConv(layer, name, in_time.get(name), padding)
        case nn.MaxPool2d() | nn.AvgPool2d():
            inflated = _inflated_pool(layer, name, in_time.get(name))
        case nn.AdaptiveAvgPool2d():
            inflated = nn.AdaptiveAvgPool3d((1, *_pair(layer.output_size)))
        case nn.BatchNorm2d():
            inflated = nn.BatchNorm3d(
                layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats
            )
            inflated.load_state_dict(layer.state_dict(), assign=True)
        case nn.Dropout2d():
            inflated = nn.Dropout3d(layer.p, layer.inplace)
        case _:
            for child, module in list(layer.named_children()):
                layer.set_submodule(child, _inflated(module, f"{name}.{child}".lstrip("."), in_time, padding))
            return layer
    return inflated.train(layer.training)


class InflatedConv(nn.Conv3d):
    """A convolution of pictures that has been given an extent in time.

    Args:
        conv: the convolution of pictures, [out, in, H, W].
        name: what errors call it.
        in_time: extent and stride in time; None: those in height, and height's padding and dilation.
        temporal_padding: see `inflate`.

    Raises:
        ValueError: if the convolution is not padded by a number of zeros.
    """

    def __init__(
        self, conv: nn.Conv2d, name: str, in_time: tuple[int, int] | None, temporal_padding: TemporalPadding
    ) -> None:
        if isinstance(conv.padding, str) or conv.padding_mode != "zeros":
            raise ValueError(
                f"{name}: padding {conv.padding!r} of {conv.padding_mode} has no inflated form here, "
                "only numbers of zeros have"
            )
        extent, stride = in_time or (conv.kernel_size[0], conv.stride[0])
        with torch.device("meta"):  # no random numbers for weights that are replaced at once
            super().__init__(
                conv.in_channels,
                conv.out_channels,
                _extended(extent, conv.kernel_size),
                _extended(stride, conv.stride),
                _extended(extent // 2 if in_time else conv.padding[0], conv.padding),
                _extended(1 if in_time else conv.dilation[0], conv.dilation),
                conv.groups,
                conv.bias is not None,
            )
        self.temporal_padding = temporal_padding
        self.weight = nn.Parameter(inflated_weight(conv.weight, extent))
        self.bias = conv.bias

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, T, H, W] → [B, out, T', H', W']."""
        assert not isinstance(self.padding, str)
        in_time, *in_space = self.padding
        if self.temporal_padding == "replicate" and in_time:
            x = F.pad(x, (0, 0, 0, 0, in_time, in_time), mode="replicate")
            in_time = 0
        padding = (in_time, *in_space)
        return F.conv3d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


def inflated_weight(weight: Tensor, extent: int) -> Tensor:
    """Filters [out, in, H, W] repeated along time and divided: [out, in, extent, H, W]."""
    return weight.detach()[:, :, None].repeat(1, 1, extent, 1, 1) / extent


def _inflated_unit(unit: ConvUnit, extent: int, stride: int, padding: TemporalPadding) -> ConvUnit:
    conv = unit.conv
    with torch.device("meta"):
        inflated = ConvUnit(
            conv.in_channels,
            conv.out_channels,
            _extended(extent, conv.kernel_size),
            _extended(stride, conv.stride),
            padding,
        )
    inflated.conv.weight = nn.Parameter(inflated_weight(conv.weight, extent))
    inflated.norm = unit.norm
    return inflated


def _inflated_pool(
    pool: nn.MaxPool2d | nn.AvgPool2d, name: str, in_time: tuple[int, int] | None
) -> nn.MaxPool3d | nn.AvgPool3d:
    kernel, strides, paddings = (_pair(value) for value in (pool.kernel_size, pool.stride, pool.padding))
    extent, stride = in_time or (kernel[0], strides[0])
    padding = extent // 2 if in_time else paddings[0]
    sizes = _extended(extent, kernel), _extended(stride, strides), _extended(padding, paddings)
    if isinstance(pool, nn.MaxPool2d):
        dilations = _pair(pool.dilation)
        dilation = _extended(1 if in_time else dilations[0], dilations)
        return nn.MaxPool3d(*sizes, dilation, pool.return_indices, pool.ceil_mode)
    if padding and pool.count_include_pad:
        raise ValueError(f"{name}: an average pool that counts zeros beyond the border has no inflated form here")
    divisor = pool.divisor_override and pool.divisor_override * extent
    return nn.AvgPool3d(*sizes, pool.ceil_mode, pool.count_include_pad, divisor)


def _is_leaf(layer: nn.Module) -> bool:
    return next(layer.children(), None) is None


def _extended(in_time: int, in_space: tuple[int, ...]) -> tuple[int, int, int]:
    height, width = in_space
    return in_time, height, width


def _pair(size: Any) -> Any:
    """Of a layer's argument that may be one number for height and width."""
    return size if isinstance(size, tuple) else (size, size)


def inflate_inception(pictures: InceptionV1, in_channels: int = 3, temporal_padding: TemporalPadding = "zero") -> I3D:
    """The I3D that an Inception-v1 of pictures inflates to, head and all, in the same mode.

    With "replicate" the logits of a boring video are those of the picture, at any length: within 2e-6 of their norm, in
    float32. With "zero", the padding of the released networks, filters near both ends see zeros in place of the
    picture, and the logits are off by this share of their norm (224x224 pixels, a frame of a real clip):

        frames                                     9    16    33    64   128   250
        random weights                           57 %  42 %  13 %   6 %   3 %   2 %
        those of rgb_scratch, summed over time   65 %  58 %  31 %  19 %   9 %   5 %

    Args:
        pictures: left as it is.
        in_channels: 3 for RGB, 2 for flow; see `stem_weight`.
        temporal_padding: see `model.I3D`.
    """
    with torch.device("meta"):  # no random numbers for weights that are replaced at once
        network = I3D(pictures.num_classes, in_channels, pictures.dropout.p, temporal_padding)
    network.to_empty(device=pictures.head.weight.device).to(pictures.head.weight.dtype)
    begin_with_pictures(network, pictures)
    head = {"weight": pictures.head.weight[:, :, None, None, None], "bias": pictures.head.bias}
    network.Logits.load_state_dict(head)
    return network.train(pictures.training)


def begin_with_pictures(network: nn.Module, pictures: InceptionV1) -> None:
    """Gives every Inception-v1 in a network, of pictures or inflated, the weights and statistics of `pictures`.

    Its other layers, the heads among them, stay as they are.

    Args:
        network: one with an `Inception` in it: every one but C3D.
        pictures: a network of RGB, whose input was in [-1, 1].

    Raises:
        ValueError: if there is no Inception in the network, or `pictures` takes neither RGB nor as many channels.
    """
    bodies = [module for module in network.modules() if isinstance(module, Inception)]
    if not bodies:
        raise ValueError(f"a {type(network).__name__} has no Inception-v1 that pictures could begin")
    for body in bodies:
        weights = _body_weights(pictures.body, body.dimensions)
        stem = f"Conv{body.dimensions}d_1a_7x7.conv.weight"
        weights[stem] = stem_weight(weights[stem], body.get_parameter(stem).shape[1])
        own = body.state_dict()
        with torch.no_grad():
            for name, tensor in weights.items():
                own[name].copy_(tensor)


def _body_weights(body: Inception, dimensions: int) -> dict[str, Tensor]:
    """State dict of a body of pictures, inflated as I3D is if `dimensions` is 3, under the names it then has."""
    if dimensions == 3:
        body = inflate(body, I3D_IN_TIME)  # type: ignore[assignment]
    return {name.replace("Conv2d_", f"Conv{dimensions}d_"): tensor for name, tensor in body.state_dict().items()}


def stem_weight(weight: Tensor, in_channels: int) -> Tensor:
    """Weights of a first convolution for another number of channels: 2 for I3D's flow, 20 for ten flows of pictures.

    Every channel gets the sum over red, green and blue, divided by the number of channels: the rule of inflation, with
    channels for frames. A grey picture that is put into all channels has the response it had, so the statistics of the
    batch normalisation behind it keep their scale. (The paper does not say what it did. Temporal Segment Networks take
    the mean over RGB instead, which is in_channels / 3 times this.)

    Args:
        weight: [out, 3, …].
        in_channels: 3 returns `weight` itself.

    Returns:
        [out, in_channels, …].

    Raises:
        ValueError: if `weight` is not of RGB.
    """
    if weight.shape[1] == in_channels:
        return weight
    if weight.shape[1] != 3:
        raise ValueError(f"a first convolution of {weight.shape[1]} channels, only one of RGB can begin another")
    mean = weight.sum(dim=1, keepdim=True) / in_channels
    return mean.expand(-1, in_channels, *weight.shape[2:]).contiguous()
