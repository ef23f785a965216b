"""Networks as they are fastest in a test: each batch normalisation folded into the convolution before it."""

import copy

import torch
from torch import nn

from model.layers import ConvUnit, NetworkT, OffsetBatchNorm, channels_last


@torch.no_grad()
def fold_batch_norm(network: NetworkT) -> NetworkT:
    """A copy for inference alone, in which the convolutions of all `ConvUnit`s do what the normalisations did.

    In evaluation mode a normalisation is a scale and an offset: (w·x − mean) / sqrt(var + ε) + bias is a convolution
    by w / sqrt(var + ε) that has a bias. It is computed in double precision; outputs differ by rounding.

    Args:
        network: any; it stays as it is.

    Returns:
        The copy, in evaluation mode, its parameters without gradients, channels last in memory. Its state dict has
        other names, and is not one to save.
    """
    network = copy.deepcopy(network).eval().requires_grad_(False)
    for unit in network.modules():
        if isinstance(unit, ConvUnit) and isinstance(unit.norm, OffsetBatchNorm):
            norm, weight = unit.norm, unit.conv.weight
            scale = torch.rsqrt(norm.running_var.double() + norm.EPSILON)
            folded = (weight.double() * scale.view(-1, *[1] * (weight.ndim - 1))).to(weight.dtype)
            unit.conv.weight = nn.Parameter(folded, requires_grad=False)
            offset = norm.bias.double() - norm.running_mean.double() * scale
            unit.conv.bias = nn.Parameter(offset.to(weight.dtype), requires_grad=False)
            unit.norm = nn.Identity()
    return channels_last(network)
