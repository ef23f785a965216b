"""What an evaluation found, as JSON values: shares of clips right with confidence intervals, confusion, every clip."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from train.clip_list import Missing, clip_list
from train.evaluate import TOP, ClipResult, Protocol, Streams, in_order, top_classes
from train.loader import Bad
from train.stream import Samples

MEASURES = ("top1", f"top{TOP}", "mean_class_accuracy")
CONFIDENCE, RESAMPLES, SEED = 0.95, 2000, 0
EDGES = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)  # quantiles between which an interval lies


def summary(
    results: Sequence[ClipResult],
    unreadable: Sequence[Bad],
    samples: Samples,
    streams: Streams,
    protocol: Protocol,
    split: str | None,
    missing: Missing | None,
) -> dict[str, Any]:
    """What an evaluation found.

    `top1` and `top5` are shares (0…1) of the labelled clips, `mean_class_accuracy` is the mean of the top-1 shares of
    the classes that occur, all of the streams together; None where no clip has a label. `intervals` has the confidence
    interval of each, and `streams` the same for each stream. `confusion` counts clips, [true class][top-1 answer]
    of the streams together, classes in the order of `labels`. Every clip is listed, with or without a label.

    Args:
        results: of the clips that were tested.
        unreadable: those that could not be.
        samples: where they are from.
        streams: the networks.
        protocol: what these were shown.
        split: that was asked for.
        missing: what the split lacks; None where that is not known.
    """
    scored = [result for result in results if result.class_index is not None]
    labels = np.array([result.class_index for result in scored], np.int64)
    classes = streams.classes.labels
    joint = ranks([result.joint for result in scored], labels)
    videos = [result.video for result in scored]
    by_stream = {name: ranks([result.logits[name] for result in scored], labels) for name in streams.networks}
    return {
        "clips_labelled": len(scored),
        **_with_intervals(joint, labels, videos),
        "streams": {name: _with_intervals(of_stream, labels, videos) for name, of_stream in by_stream.items()},
        "bootstrap": {"confidence": CONFIDENCE, "resamples": RESAMPLES, "seed": SEED, "videos": len(set(videos))},
        "per_class": [
            {
                "label": classes[index],
                "clips_labelled": int((labels == index).sum()),
                **_tops(joint[labels == index]),
                "streams": {name: _tops(of_stream[labels == index]) for name, of_stream in by_stream.items()},
            }
            for index in np.unique(labels).tolist()
        ],
        "classes": streams.classes.name,
        "labels": list(classes),
        "split": split,
        "snapshot": samples.snapshot,
        "snapshot_sha256": samples.snapshot_sha256,
        "clip_list": clip_list([result.key for result in results], unreadable, missing),
        "protocol": {
            "crop": protocol.crop,
            "short_side": samples.short_side,
            "frames": protocol.frames,
            "crops": protocol.crops,
            "flips": protocol.flips,
            "weights": {name: protocol.weights.get(name, 1.0) for name in streams.networks},
            "precision": streams.precision,
        },
        "checkpoints": {
            name: {"architecture": found.architecture, "format": found.format, "sha256": found.sha256}
            for name, found in streams.checkpoints.items()
        },
        "clips": [_clip(result, streams) for result in results],
        "confusion": _confusion(scored, labels, len(classes)) if scored else None,
    }


def _clip(result: ClipResult, streams: Streams) -> dict[str, Any]:
    return {
        "key": result.key,
        "label": result.label,
        "video": result.video,
        "top5": top_classes(result.joint, streams.classes),
        "streams": {name: top_classes(logits, streams.classes, 1)[0] for name, logits in result.logits.items()},
    }


def _confusion(scored: Sequence[ClipResult], labels: np.ndarray, classes: int) -> list[list[int]]:
    counts = np.zeros((classes, classes), np.int64)
    for label, result in zip(labels.tolist(), scored, strict=True):
        counts[label, in_order(result.joint)[0]] += 1
    return list(counts.tolist())


def ranks(logits: Sequence[Tensor], labels: np.ndarray) -> np.ndarray:
    """The place of each clip's class among its logits, [classes] each, from 0 for the largest on: [N] int64."""
    pairs = zip(logits, labels.tolist(), strict=True)
    return np.array([in_order(clip).index(label) for clip, label in pairs], np.int64)


def _tops(places: np.ndarray) -> dict[str, float | None]:
    """The shares of clips of these ranks that are right and among the first; None without clips."""
    return {f"top{k}": float((places < k).mean()) if len(places) else None for k in (1, TOP)}


def measures(places: np.ndarray, labels: np.ndarray, times: np.ndarray | None = None) -> tuple[float, float, float]:
    """`MEASURES` of one clip at least, from the ranks of their classes, [N], and the classes, [N] int64.

    Clips count as often as `times` says, [N]; once by default.
    """
    counts = np.ones(len(places)) if times is None else times
    right = counts * (places < 1)
    of_classes = np.bincount(labels, counts)
    of_class = np.bincount(labels, right)[of_classes > 0] / of_classes[of_classes > 0]
    total = counts.sum()
    return float(right.sum() / total), float((counts * (places < TOP)).sum() / total), float(of_class.mean())


def intervals(places: np.ndarray, labels: np.ndarray, videos: Sequence[str]) -> dict[str, list[float]]:
    """The confidence interval, lowest and highest, of each of `MEASURES`: percentiles of the bootstrap over videos.

    Clips of one source video are alike, so that they are drawn together: as many videos as there are, each any number
    of times. One video says nothing of others: from 0 to 1. All networks that are tested on the same clips see the
    same draws. The mean of classes is over those that were drawn.

    Args:
        places: [N] ranks of the clips' classes.
        labels: [N] int64 classes.
        videos: the source video of each clip.
    """
    names, video_of = np.unique(videos, return_inverse=True)
    if len(names) == 1:
        return {name: [0.0, 1.0] for name in MEASURES}
    found = np.array([measures(places, labels, times[video_of]) for times in draws(len(names))])
    low, high = np.quantile(found, EDGES, axis=0).tolist()
    return {name: [low[place], high[place]] for place, name in enumerate(MEASURES)}


def draws(videos: int) -> Iterator[np.ndarray]:
    """The bootstrap's draws: how often each of so many videos is drawn, [videos] int64, `RESAMPLES` times."""
    random = np.random.default_rng(SEED)
    for _ in range(RESAMPLES):
        yield np.bincount(random.integers(videos, size=videos), minlength=videos)


def _with_intervals(places: np.ndarray, labels: np.ndarray, videos: Sequence[str]) -> dict[str, Any]:
    if not len(places):
        return {**dict.fromkeys(MEASURES), "intervals": None}
    found = dict(zip(MEASURES, measures(places, labels), strict=True))
    return {**found, "intervals": intervals(places, labels, videos)}
