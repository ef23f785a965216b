"""Whole-clip evaluation (paper §3): centre crop, all frames, logits averaged over time, streams added."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manifests.classes import ClassList, published_of_size
from manifests.sample import FLOW, RGB, FormatError
from model import I3D, Checkpoint, CheckpointError, Stream, load_checkpoint
from pipeline.video import VideoError
from train.decode import flow_input, rgb_input
from train.stream import Samples, read_json

TOP = 5
NUMBERED = "numbers"  # name of the class list of a network whose labels nobody knows
MEMBER_OF = {"rgb": RGB, "flow": FLOW}
INPUT_OF = {"rgb": rgb_input, "flow": flow_input}


@dataclass(frozen=True)
class Streams:
    """The networks of one or two streams, on one device, and the classes that their logits mean."""

    networks: dict[Stream, I3D]
    checkpoints: dict[Stream, Checkpoint]
    classes: ClassList
    device: torch.device


@dataclass(frozen=True)
class ClipResult:
    """The logits of one clip by stream, [classes] each, and their sum as "both" where there are two."""

    key: str
    label: str | None
    class_index: int | None
    logits: dict[str, Tensor]

    @property
    def joint(self) -> Tensor:
        """The two-stream logits, or those of the only stream."""
        return sum_of_streams(self.logits)


def load_streams(
    rgb: Path | None, flow: Path | None, classes: ClassList | None = None, device: torch.device | None = None
) -> Streams:
    """Load one network or two.

    Args:
        rgb: checkpoint of the RGB stream.
        flow: checkpoint of the flow stream.
        classes: class list of the data, where it is known; the networks must have as many.
        device: where to run; by default a CUDA GPU where there is one.

    Raises:
        CheckpointError: no checkpoint given, one that cannot be read, is of the other stream, or of other classes.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    given: dict[Stream, Path] = {}
    if rgb is not None:
        given["rgb"] = rgb
    if flow is not None:
        given["flow"] = flow
    if not given:
        raise CheckpointError("no checkpoint: give --rgb, --flow or both")
    checkpoints = {stream: load_checkpoint(path, stream) for stream, path in given.items()}
    networks = {stream: checkpoint.network().to(device) for stream, checkpoint in checkpoints.items()}
    for stream, checkpoint in checkpoints.items():
        classes = _classes_of(checkpoint, classes, str(given[stream]))
    assert classes is not None  # there is a checkpoint, and each one names its classes
    return Streams(networks, checkpoints, classes, device)


def _classes_of(checkpoint: Checkpoint, classes: ClassList | None, path: str) -> ClassList:
    """The class list of the data or, where that is unknown, of the checkpoint; an error where the two disagree."""
    if classes is not None and len(classes.labels) != checkpoint.num_classes:
        raise CheckpointError(
            f"{path}: a network of {checkpoint.num_classes} classes, "
            f"where {len(classes.labels)} ({classes.name}) are wanted: was the data prepared with another --classes?"
        )
    if checkpoint.classes is not None:
        if classes is not None and classes.labels != checkpoint.classes:
            pairs = zip(classes.labels, checkpoint.classes, strict=True)
            place, (ours, theirs) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
            raise CheckpointError(f"{path}: class {place} is {theirs!r} there and {ours!r} in {classes.name}")
        try:
            return classes or ClassList("checkpoint", checkpoint.classes)
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from error
    by_number = ClassList(NUMBERED, tuple(f"class {i}" for i in range(checkpoint.num_classes)))
    return classes or published_of_size(checkpoint.num_classes) or by_number


def evaluate(samples: Samples, streams: Streams) -> Iterator[ClipResult]:
    """Run every clip through the networks.

    Raises:
        FormatError: a sample that cannot be read or decoded, or that has no flow for a flow network; names it.
    """
    for sample in samples:
        members = sample.read()
        metadata = read_json(members)
        name = f"{sample.shard}: sample {sample.key}"
        for stream in streams.networks:
            if MEMBER_OF[stream] not in members:
                raise FormatError(f"{name} has no {stream}: prepared with --flow none?")
        index, labels = metadata["class_index"], streams.classes.labels
        fits = index is None or (
            index < len(labels) and (streams.classes.name == NUMBERED or metadata["label"] == labels[index])
        )
        if not fits:
            raise FormatError(
                f"{name}: class {index} with label {metadata['label']!r} is not in {streams.classes.name}"
            )
        try:
            logits = stream_logits(members, streams)
        except (VideoError, ValueError) as error:
            raise FormatError(f"{name}: {error}") from error
        yield ClipResult(sample.key, metadata["label"], metadata["class_index"], logits)


def stream_logits(members: dict[str, bytes], streams: Streams) -> dict[str, Tensor]:
    """Logits of one stored clip by stream: [classes] each, on the CPU."""
    logits: dict[str, Tensor] = {}
    with torch.inference_mode():
        for stream, network in streams.networks.items():
            clip = INPUT_OF[stream](members[MEMBER_OF[stream]]).to(streams.device)
            logits[stream] = network(clip)[0].cpu()
    return logits


def sum_of_streams(logits: dict[str, Tensor]) -> Tensor:
    """Add the streams' logits, before the softmax (paper §2.3)."""
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
    label; `streams` has them for each stream. Every clip is listed, with or without a label.
    """
    together = {
        "top1": _top_share([(result.joint, result.class_index) for result in results], 1),
        "top5": _top_share([(result.joint, result.class_index) for result in results], TOP),
    }
    return {
        **together,
        "streams": {
            stream: {
                f"top{k}": _top_share([(result.logits[stream], result.class_index) for result in results], k)
                for k in (1, TOP)
            }
            for stream in streams.networks
        },
        "clips_labelled": sum(result.class_index is not None for result in results),
        "classes": streams.classes.name,
        "snapshot": samples.snapshot,
        "checkpoints": {
            stream: {"format": checkpoint.format, "sha256": checkpoint.sha256}
            for stream, checkpoint in streams.checkpoints.items()
        },
        "clips": [
            {"key": result.key, "label": result.label, "top5": top_classes(result.joint, streams.classes)}
            for result in results
        ],
    }


def _top_share(scored: list[tuple[Tensor, int | None]], k: int) -> float | None:
    hits = [index in logits.topk(min(k, len(logits))).indices.tolist() for logits, index in scored if index is not None]
    return sum(hits) / len(hits) if hits else None
