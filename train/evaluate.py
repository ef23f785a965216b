"""Whole-clip evaluation (paper §2.5): centre crop, all frames, logits averaged over time, streams added."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manifests.classes import ClassList, published_of_size
from manifests.sample import FormatError
from model import (
    I3D,
    Checkpoint,
    CheckpointError,
    Network,
    Stream,
    chunked_logits,
    fold_batch_norm,
    load_checkpoint,
)
from train.decode import CROP_PIXELS, Crops, mirrored, network_input, network_inputs
from train.loader import Bad, whole_clips
from train.run import Precision
from train.samplers import whole_clip_windows
from train.stream import Inputs, Samples, streams_of

TOP = 5
CHUNK_FRAMES = 256  # of a video that I3D sees at a time: a clip of ten seconds at once
NUMBERED = "numbers"  # name of the class list of a network whose labels nobody knows


@dataclass(frozen=True)
class Streams:
    """The networks whose logits are added, on one device, by what they see; and the classes that the logits mean."""

    networks: dict[Inputs, Network]
    checkpoints: dict[Inputs, Checkpoint]
    classes: ClassList
    device: torch.device
    precision: Precision = "fp32"

    @property
    def seen(self) -> tuple[Stream, ...]:
        """The streams that any of them sees."""
        return tuple(dict.fromkeys(stream for network in self.networks.values() for stream in network.streams))

    def autocast(self) -> torch.autocast:
        """A context in which networks compute in `precision`."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


@dataclass(frozen=True)
class Protocol:
    """How whole clips are tested; by default as in the paper.

    Attributes:
        crop: side of a crop, in pixels.
        frames: only so many from the middle of each clip; None is all.
        crops: the centre crop, or three along the longer side.
        flips: show each crop mirrored, too. A network's logits are averaged over all that it is shown of a clip.
        weights: of networks when their logits are added; 1 of those that are not named.
    """

    crop: int = CROP_PIXELS
    frames: int | None = None
    crops: Crops = 1
    flips: bool = False
    weights: Mapping[str, float] = field(default_factory=dict)


PAPER = Protocol()


@dataclass(frozen=True)
class ClipResult:
    """The logits of one clip: by network, and the weighted sum of all; [classes] each.

    `video` is the source that the clip was cut from, by name.
    """

    key: str
    label: str | None
    class_index: int | None
    video: str
    logits: dict[str, Tensor]
    joint: Tensor


def load_streams(
    paths: Mapping[Inputs, Path | None],
    classes: ClassList | None = None,
    device: torch.device | None = None,
    precision: Precision = "fp32",
) -> Streams:
    """Load one network or several.

    Args:
        paths: checkpoint of each, by what it sees; None where there is none.
        classes: class list of the data, where it is known; the networks must have as many.
        device: where to run; by default a CUDA GPU where there is one.
        precision: what the networks compute in.

    Raises:
        CheckpointError: no checkpoint given, one that cannot be read, is of another stream, or of other classes.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    given = {inputs: path for inputs, path in paths.items() if path is not None}
    if not given:
        raise CheckpointError(f"no checkpoint: give {' or '.join(f'--{inputs}' for inputs in paths)}")
    checkpoints = {inputs: load_checkpoint(path, streams_of(inputs)) for inputs, path in given.items()}
    networks = {inputs: fold_batch_norm(checkpoint.network()).to(device) for inputs, checkpoint in checkpoints.items()}
    for inputs, checkpoint in checkpoints.items():
        classes = _agreed(checkpoint, classes, str(given[inputs]))
    for network in networks.values():
        network.checks_values = False
    assert classes is not None  # there is a checkpoint, and each one names its classes
    return Streams(networks, checkpoints, classes, device, precision)


def classes_of(checkpoint: Checkpoint) -> ClassList | None:
    """The classes that a checkpoint names, or Kinetics' of the released networks and their ports, which name none.

    Raises:
        CheckpointError: names that are none.
    """
    if checkpoint.classes is None:
        return None if checkpoint.is_own else published_of_size(checkpoint.num_classes)
    try:
        return ClassList("checkpoint", checkpoint.classes)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def _agreed(checkpoint: Checkpoint, classes: ClassList | None, path: str) -> ClassList:
    """The class list of the data or, where that is unknown, of the checkpoint; an error where the two disagree."""
    if classes is not None and len(classes.labels) != checkpoint.num_classes:
        raise CheckpointError(
            f"{path}: a network of {checkpoint.num_classes} classes, "
            f"where {len(classes.labels)} ({classes.name}) are wanted: was the data prepared with another --classes?"
        )
    if checkpoint.classes is not None and classes is not None and classes.labels != checkpoint.classes:
        pairs = zip(classes.labels, checkpoint.classes, strict=True)
        place, (ours, theirs) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
        raise CheckpointError(f"{path}: class {place} is {theirs!r} there and {ours!r} in {classes.name}")
    try:
        named = classes or classes_of(checkpoint)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return named or ClassList(NUMBERED, tuple(f"class {i}" for i in range(checkpoint.num_classes)))


def evaluate(
    samples: Samples, streams: Streams, protocol: Protocol = PAPER, workers: int = 0
) -> Iterator[ClipResult | Bad]:
    """Run every clip through the networks.

    Args:
        samples: which clips.
        streams: the networks.
        protocol: what they are shown of a clip.
        workers: processes that decode; 0 is this one.

    Returns:
        The result of each clip, or what is wrong with it.

    Raises:
        FormatError: a label that the networks do not know.
        OSError: the samples cannot be reached, or a worker process died.
    """
    labels = streams.classes.labels
    for clip in whole_clips(samples, streams.seen, protocol.crop, protocol.frames, workers, protocol.crops):
        if isinstance(clip, Bad):
            yield clip
            continue
        index = clip.class_index
        fits = index is None or (
            index < len(labels) and (streams.classes.name == NUMBERED or clip.label == labels[index])
        )
        if not fits:
            raise FormatError(
                f"{clip.sample.name}: class {index} with label {clip.label!r} is not in {streams.classes.name}"
            )
        logits = mean_logits(clip.crops, streams, protocol.flips)
        together = sum_of_streams(logits, protocol.weights)
        yield ClipResult(clip.sample.key, clip.label, index, clip.video, logits, together)


def mean_logits(crops: Mapping[Stream, Tensor], streams: Streams, flips: bool) -> dict[str, Tensor]:
    """Logits of one clip, crops [N, T, rows, W] uint8 of each stream, averaged over the crops: as of `clip_logits`."""
    count = len(next(iter(crops.values())))
    views = [
        clip_logits({stream: of_stream[number] for stream, of_stream in crops.items()}, streams, flip)
        for number in range(count)
        for flip in ((False, True) if flips else (False,))
    ]
    return {inputs: torch.stack([view[inputs] for view in views]).mean(0) for inputs in streams.networks}


def clip_logits(pixels: Mapping[Stream, Tensor], streams: Streams, flip: bool = False) -> dict[str, Tensor]:
    """Logits of one clip, [T, rows, W] uint8 of each stream, by network: [classes] each, on the CPU.

    `flip`: of the clip as a mirror shows it.
    """
    with streams.autocast():
        return {
            inputs: network_logits(pixels, network, streams.device, flip)
            for inputs, network in streams.networks.items()
        }


@torch.inference_mode()
def network_logits(
    pixels: Mapping[Stream, Tensor], network: Network, device: torch.device, flip: bool = False
) -> Tensor:
    """Logits of one clip, [classes] on the CPU: their mean over the windows that the network is tested on."""
    clip_frames = min(len(pixels[stream]) for stream in network.streams)
    windows = whole_clip_windows(network.architecture, network.streams, clip_frames)
    if isinstance(network, I3D):
        ((stream, numbers),) = windows[0].items()
        some = pixels[stream][list(numbers)]
        shown = (network_input(piece[None].to(device), stream) for piece in torch.split(some, CHUNK_FRAMES))
        pieces = (mirrored(piece, stream) if flip else piece for piece in shown)
        return chunked_logits(network, pieces, len(some))[0].float().cpu()
    logits = []
    for window in windows:
        inputs = network_inputs({s: pixels[s][None, list(some)] for s, some in window.items()}, network, device)
        if flip:
            inputs = [mirrored(x, stream) for x, stream in zip(inputs, network.streams, strict=True)]
        logits.append(network(*inputs)[0])
    return torch.stack(logits).mean(0).float().cpu()


def sum_of_streams(logits: Mapping[str, Tensor], weights: Mapping[str, float] | None = None) -> Tensor:
    """Add the networks' logits, before the softmax (paper §2.3), each times its weight, which is 1 by default."""
    weights = weights or {}
    return torch.stack([weights.get(inputs, 1.0) * of_one for inputs, of_one in logits.items()]).sum(0)


def top_classes(logits: Tensor, classes: ClassList, count: int = TOP) -> list[dict[str, Any]]:
    """The most probable classes, best first: label, index and probability each."""
    probabilities = logits.softmax(0)
    return [
        {"label": classes.labels[index], "index": index, "probability": float(probabilities[index])}
        for index in in_order(logits)[:count]
    ]


def in_order(logits: Tensor) -> list[int]:
    """Class indices by their logits, [classes], the largest first; of equal ones the smaller index."""
    return logits.argsort(descending=True, stable=True).tolist()
