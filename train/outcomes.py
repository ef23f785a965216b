"""Which clips several tests had right: means over tests and differences of two, with confidence intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from train.scores import EDGES, SEED, draws


@dataclass(frozen=True)
class Outcome:
    """What a test said of the clips that have a label.

    Attributes:
        clips: label and source video of each, by its key.
        right: [N] bool, in the same order, whether the first answer was right.
    """

    clips: Mapping[str, tuple[str, str]]
    right: np.ndarray

    @property
    def share(self) -> float:
        """Of clips right."""
        return float(self.right.mean())

    def of(self, keys: set[str]) -> "Outcome":
        """The same of some clips."""
        kept = np.array([key in keys for key in self.clips], bool)
        return Outcome({key: clip for key, clip in self.clips.items() if key in keys}, self.right[kept])


def outcome_of(result: Mapping[str, Any]) -> Outcome:
    """What `train.scores.summary` has of each clip with a label.

    Raises:
        ValueError: what it has does not agree with itself; a KeyError, TypeError and others where it is something else.
    """
    found = [clip for clip in result["clips"] if clip["label"] is not None]
    clips = {clip["key"]: (clip["label"], clip["video"]) for clip in found}
    if len(clips) < len(found) or not all(isinstance(word, str) for key in clips for word in (key, *clips[key])):
        raise ValueError("clips are not each of a key, a label and a video")
    outcome = Outcome(clips, np.array([clip["top5"][0]["label"] == clip["label"] for clip in found], bool))
    if not clips or not math.isclose(outcome.share, result["top1"], abs_tol=1e-9):
        raise ValueError(f"top1 is {result['top1']!r}, of {outcome.right.sum()} of {len(clips)} clips right")
    return outcome


def of_common_clips(first: Outcome, second: Outcome) -> tuple[Outcome, Outcome] | None:
    """Two tests, of those clips that both were of; None where there are none.

    Raises:
        ValueError: one of these clips has not the same label and video in both.
    """
    common = first.clips.keys() & second.clips.keys()
    for key in common:
        if first.clips[key] != second.clips[key]:
            raise ValueError(f"clip {key!r} is {first.clips[key]!r} in one test and {second.clips[key]!r} in another")
    return (first.of(common), second.of(common)) if common else None


@dataclass(frozen=True)
class Term:
    """What a test adds to a sum of shares of clips right: a weight, and the seed of the network's training."""

    weight: float
    seed: int | None
    outcome: Outcome


def interval_of_sum(terms: Sequence[Term]) -> tuple[float, float]:
    """The confidence interval of a weighted sum of shares of clips right, such as a mean or a difference.

    Percentiles of the bootstrap over source videos, and over the seeds where there are several (drawn apart from each
    other: Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1, 2007). All tests see the same draws, so
    that of two tests of the same clips only what differs counts, and a video that several splits test on is drawn for
    all of them. Of a single seed the interval says nothing of another training.

    Args:
        terms: of tests of one clip at least; as many, with the same weights, of each seed.

    Returns:
        Lowest and highest. All that is possible where the videos are too few to say anything: a single one, or so few
        that half of the draws have none of some test.
    """
    videos = sorted({video for term in terms for _, video in term.outcome.clips.values()})
    place = {video: number for number, video in enumerate(videos)}
    counts, rights = np.zeros((2, len(videos), len(terms)))
    for column, term in enumerate(terms):
        video_of = [place[video] for _, video in term.outcome.clips.values()]
        counts[:, column] = np.bincount(video_of, minlength=len(videos))
        rights[:, column] = np.bincount(video_of, term.outcome.right, minlength=len(videos))
    seeds = list(dict.fromkeys(term.seed for term in terms))
    seed_of = [seeds.index(term.seed) for term in terms]
    random = np.random.default_rng(SEED + 1)  # other numbers than those of the videos
    weights = np.array([term.weight for term in terms])
    found = []
    drawn = 0
    for times in draws(len(videos)):
        times_of_seed = np.bincount(random.integers(len(seeds), size=len(seeds)), minlength=len(seeds))
        count = times @ counts
        drawn += 1
        if count.all():
            found.append(float((times @ rights / count * weights * times_of_seed[seed_of]).sum()))
    if len(videos) == 1 or len(found) < drawn / 2:
        return float(weights[weights < 0].sum()), float(weights[weights > 0].sum())
    low, high = np.quantile(found, EDGES)
    return float(low), float(high)
