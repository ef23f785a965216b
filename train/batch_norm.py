"""Batch normalisation's statistics, measured anew before a network in training is tested."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from model import BatchNorm, Network
from train.ranks import Ranks

BATCHES = 32


@torch.no_grad()
def recompute_statistics(network: Network, batches: Iterable[Sequence[Tensor]]) -> None:
    """Set means and variances to their averages over batches, with the weights of now; leaves evaluation mode on.

    The running averages of the released network move by a thousandth a step: after a short run they are still those
    of the beginning, and a network that trains well is tested at chance. Nothing else changes, no dropout is drawn.

    Args:
        network: what to measure.
        batches: inputs as in training, [B, C, T, H, W] of each stream; at least one.
    """
    network.eval()
    norms = [module for module in network.modules() if isinstance(module, BatchNorm)]
    momentum = [norm.momentum for norm in norms]
    for number, batch in enumerate(batches, start=1):
        for norm in norms:
            norm.train()
            norm.momentum = 1 / number  # so the running average is the plain one
        network(*batch)
    for norm, before in zip(norms, momentum, strict=True):
        norm.eval()
        norm.momentum = before


@torch.no_grad()
def average_statistics(network: Network, ranks: Ranks) -> None:
    """Replace the statistics of a network by their means over all ranks, each of which has measured its own."""
    norms = [module for module in network.modules() if isinstance(module, BatchNorm)]
    ranks.average([buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)])
