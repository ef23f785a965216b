"""Whole-clip evaluation (paper §3): centre crop, all frames, logits averaged over time, streams added."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from train.decode import CROP_PIXELS, network_input, network_inputs
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
class ClipResult:
    """The logits of one clip by network, [classes] each."""

    key: str
    label: str | None
    class_index: int | None
    logits: dict[str, Tensor]

    @property
    def joint(self) -> Tensor:
        """The sum of all networks' logits."""
        return sum_of_streams(self.logits)


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
        ours = checkpoint.format in ("run", "safetensors")
        return None if ours else published_of_size(checkpoint.num_classes)
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
    samples: Samples, streams: Streams, crop: int = CROP_PIXELS, frames: int | None = None, workers: int = 0
) -> Iterator[ClipResult | Bad]:
    """Run every clip through the networks.

    Args:
        samples: which clips.
        streams: the networks.
        crop: side of the centre crop, in pixels.
        frames: only so many frames from the middle of each clip; all by default, as in the paper.
        workers: processes that decode; 0 is this one.

    Returns:
        The result of each clip, or what is wrong with it.

    Raises:
        FormatError: a label that the networks do not know.
        OSError: the samples cannot be reached, or a worker process died.
    """
    labels = streams.classes.labels
    for clip in whole_clips(samples, streams.seen, crop, frames, workers):
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
        yield ClipResult(clip.sample.key, clip.label, index, clip_logits(clip.pixels, streams))


def require_good(results: Iterable[ClipResult | Bad]) -> Iterator[ClipResult]:
    """The results; `FormatError` for the first clip that cannot be read or decoded."""
    for result in results:
        if isinstance(result, Bad):
            raise FormatError(result.message)
        yield result


def clip_logits(pixels: Mapping[Stream, Tensor], streams: Streams) -> dict[str, Tensor]:
    """Logits of one clip, [T, rows, W] uint8 of each stream, by network: [classes] each, on the CPU."""
    with streams.autocast():
        return {inputs: network_logits(pixels, network, streams.device) for inputs, network in streams.networks.items()}


@torch.inference_mode()
def network_logits(pixels: Mapping[Stream, Tensor], network: Network, device: torch.device) -> Tensor:
    """Logits of one clip, [classes] on the CPU: their mean over the windows that the network is tested on."""
    clip_frames = min(len(pixels[stream]) for stream in network.streams)
    windows = whole_clip_windows(network.architecture, network.streams, clip_frames)
    if isinstance(network, I3D):
        ((stream, numbers),) = windows[0].items()
        some = pixels[stream][list(numbers)]
        pieces = (network_input(piece[None].to(device), stream) for piece in torch.split(some, CHUNK_FRAMES))
        return chunked_logits(network, pieces, len(some))[0].float().cpu()
    logits = [
        network(*network_inputs({s: pixels[s][None, list(some)] for s, some in window.items()}, network, device))[0]
        for window in windows
    ]
    return torch.stack(logits).mean(0).float().cpu()


def sum_of_streams(logits: dict[str, Tensor]) -> Tensor:
    """Add the networks' logits, before the softmax (paper §2.3)."""
    return torch.stack(list(logits.values())).sum(0)


def top_classes(logits: Tensor, classes: ClassList, count: int = TOP) -> list[dict[str, Any]]:
    """The most probable classes, best first: label, index and probability each."""
    best = logits.softmax(0).topk(min(count, len(logits)))
    return [
        {"label": classes.labels[index], "index": index, "probability": probability}
        for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def summary(results: list[ClipResult], samples: Samples, streams: Streams) -> dict[str, Any]:
    """What an evaluation found, as JSON values.

    `top1` and `top5` are shares (0…1) of the labelled clips, of the streams together, and None where no clip has a
    label; `streams` has them for each stream, `per_class` the top-1 shares of each class that occurs. Every clip is
    listed, with or without a label.
    """
    scored = [result for result in results if result.class_index is not None]
    per_class = [
        {"label": label, **_shares([result for result in scored if result.class_index == index], streams)}
        for index, label in enumerate(streams.classes.labels)
        if any(result.class_index == index for result in scored)
    ]
    return {
        **_shares(scored, streams),
        "per_class": per_class,
        "classes": streams.classes.name,
        "snapshot": samples.snapshot,
        "checkpoints": {
            stream: {"format": checkpoint.format, "sha256": checkpoint.sha256}
            for stream, checkpoint in streams.checkpoints.items()
        },
        "clips": [
            {
                "key": result.key,
                "label": result.label,
                "top5": top_classes(result.joint, streams.classes),
                "streams": {
                    stream: top_classes(logits, streams.classes, 1)[0] for stream, logits in result.logits.items()
                },
            }
            for result in results
        ],
    }


def _shares(scored: list[ClipResult], streams: Streams) -> dict[str, Any]:
    """Number of these labelled clips, and the shares of them that were right, together and by stream."""
    labels = [result.class_index for result in scored]
    joint = [result.joint for result in scored]
    return {
        "clips_labelled": len(scored),
        **{f"top{k}": top_share(joint, labels, k) for k in (1, TOP)},
        "streams": {
            stream: {f"top{k}": top_share([result.logits[stream] for result in scored], labels, k) for k in (1, TOP)}
            for stream in streams.networks
        },
    }


def top_share(logits: Sequence[Tensor], labels: Sequence[int | None], k: int) -> float | None:
    """Share (0…1) of clips whose label is among the k largest of their logits, [classes] each; None without clips."""
    hits = [label in clip.topk(min(k, len(clip))).indices.tolist() for clip, label in zip(logits, labels, strict=True)]
    return sum(hits) / len(hits) if hits else None
