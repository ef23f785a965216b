"""Features of a frozen network (paper §5, "Fixed"): what its last layer sees of whole clips, kept in files."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tokenize import TokenError

import numpy as np
import torch
from torch import Tensor, nn

from manifests.files import canonical_json, complete_file
from manifests.sample import FormatError
from model import Architecture, Checkpoint, Network, Stream, fold_batch_norm, head_names
from train.evaluate import network_logits
from train.loader import Bad, Clip, whole_clips
from train.run import identity
from train.softmax import Softmax
from train.stream import Samples

PIECE_CLIPS = 256  # whose features are one file: what a stop costs at most
_VERSION = 1  # of what the files hold
# What numpy raises for headers that are none; it reads them as a Python literal.
DAMAGED = (ValueError, EOFError, TypeError, OverflowError, RecursionError, MemoryError, SyntaxError, TokenError)


def features_of(
    samples: Samples, checkpoint: Checkpoint, crop: int, folder: Path, device: torch.device, workers: int = 0
) -> Iterator[np.ndarray | Bad]:
    """Features of clips by a frozen network, from files of a folder where they are there, else computed and kept.

    A file's name is a hash of all that decides what it holds: the clips, the network and the crop. Pieces with
    clips that cannot be used are not kept: such clips may be whole the next time.

    Args:
        samples: which clips.
        checkpoint: the network, whose last layers do not matter.
        crop: side of the centre crop, in pixels.
        folder: of the files; made where it is missing.
        device: where to compute.
        workers: processes that decode.

    Yields:
        [features] float32 of each clip, in the order of the samples, or what is wrong with it.

    Raises:
        FormatError: features that are not finite, or a damaged file of features.
        OSError: a clip that cannot be reached, or a file that cannot be written.
    """
    network: Network | None = None
    width = sum(_head_sizes(checkpoint))
    for start in range(0, len(samples), PIECE_CLIPS):
        piece = samples.take(range(start, min(start + PIECE_CLIPS, len(samples))))
        file = folder / f"{_name(piece, checkpoint, crop)}.npy"
        if file.exists():
            yield from _read(file, (len(piece), width))
            continue
        network = network or _frozen(checkpoint, device)
        found = []
        for clip in whole_clips(piece, network.streams, crop, workers=workers):
            found.append(clip if isinstance(clip, Bad) else _finite_features(clip, network, device))
            yield found[-1]
        rows = [row for row in found if not isinstance(row, Bad)]
        if len(rows) == len(found):
            with complete_file(file) as content:
                np.save(content, np.stack(rows), allow_pickle=False)


def _finite_features(clip: Clip, network: Network, device: torch.device) -> np.ndarray:
    row = clip_features(clip.pixels, network, device)
    if not row.isfinite().all():
        raise FormatError(f"{clip.sample.name}: the network's features of this clip are not finite")
    return row.numpy()


def _read(file: Path, shape: tuple[int, int]) -> np.ndarray:
    """Features from a file, mapped from it; FormatError where it holds others, or something else."""
    try:
        found = np.lib.format.open_memmap(file, mode="r")  # no archive, no pickle
    except DAMAGED as error:
        raise FormatError(f"{file}: damaged, remove it: {error}") from error
    if found.shape != shape or found.dtype != np.float32:
        raise FormatError(f"{file}: damaged, remove it: {found.dtype} {found.shape}, want float32 {shape}")
    if not np.isfinite(found).all():
        raise FormatError(f"{file}: damaged, remove it: features that are not finite")
    return found


def clip_features(pixels: Mapping[Stream, Tensor], network: Network, device: torch.device) -> Tensor:
    """What a network's last layer sees of a clip when it is tested, averaged over windows, steps and places.

    The mean logits of the clip are the last layer of this mean, as the layer is linear. Of a network with a last layer
    for each stream it is the features of all, in the order of `head_layers`.

    Args:
        pixels: [T, rows, W] uint8 of each stream, of the whole clip.
        network: in evaluation mode, on the device.
        device: where it is.

    Returns:
        [features] float32 on the CPU.
    """
    layers = head_layers(network.architecture, network.streams)
    seen: dict[str, list[Tensor]] = {layer: [] for layer in layers}

    def note(layer: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        (x,) = inputs
        channels_last = x.movedim(1, -1) if x.ndim == 5 else x
        seen[layer].append(channels_last.flatten(0, -2).float().cpu())

    hooks = [network.get_submodule(layer).register_forward_pre_hook(partial(note, layer)) for layer in layers]
    try:
        network_logits(pixels, network, device)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat([torch.cat(seen[layer]).mean(0) for layer in layers])


def head_layers(architecture: Architecture, streams: Sequence[Stream]) -> list[str]:
    """Names of the layers that give the logits: one, or one of each stream."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name in head_names(architecture, streams)))


def _head_sizes(checkpoint: Checkpoint) -> list[int]:
    """How many features each of them sees."""
    layers = head_layers(checkpoint.architecture, checkpoint.streams)
    return [checkpoint.state_dict[f"{layer}.weight"].shape[1] for layer in layers]


def _name(samples: Samples, checkpoint: Checkpoint, crop: int) -> str:
    what = {
        "version": _VERSION,
        "clips": identity(samples)["sha256"],
        "checkpoint": sorted(checkpoint.sha256.values()),
        "crop": crop,
    }
    return hashlib.sha256(canonical_json(what)).hexdigest()[:32]


def _frozen(checkpoint: Checkpoint, device: torch.device) -> Network:
    network = fold_batch_norm(checkpoint.network()).to(device)
    network.checks_values = False
    return network


def with_softmax(checkpoint: Checkpoint, softmax: Softmax) -> Checkpoint:
    """The network with a classifier of its features as its last layer, of unnamed classes.

    Where several layers give the logits, whose mean they are, each gets its features' part of the weights.
    """
    headed = checkpoint.with_new_head(len(softmax.bias))
    layers = head_layers(headed.architecture, headed.streams)
    tensors = dict(headed.state_dict)
    for layer, weight in zip(layers, torch.split(softmax.weight, _head_sizes(headed), dim=1), strict=True):
        like = tensors[f"{layer}.weight"]
        tensors[f"{layer}.weight"] = (weight * len(layers)).reshape(like.shape)
        tensors[f"{layer}.bias"] = softmax.bias.clone()
    return replace(headed, state_dict=tensors)
