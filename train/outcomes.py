"""Which clips several tests had right: means over tests and differences of two, with confidence intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from train.scores import EDGES, draws


@dataclass(frozen=True)
class Outcome:
    """What a test said of the clips that have a label.

    Attributes:
        keys: of the clips.
        videos: the source that each was cut from.
        right: [N] bool, whether the first answer was right.
    """

    keys: tuple[str, ...]
    videos: tuple[str, ...]
    right: np.ndarray

    @property
    def share(self) -> float:
        """Of clips right."""
        return float(self.right.mean())

    def of(self, keys: set[str]) -> "Outcome":
        """The same of some clips."""
        places = [place for place, key in enumerate(self.keys) if key in keys]
        return Outcome(
            tuple(self.keys[place] for place in places),
            tuple(self.videos[place] for place in places),
            self.right[places],
        )


def outcome_of(result: Mapping[str, Any]) -> Outcome:
    """What `train.scores.summary` has of each clip with a label."""
    clips = [clip for clip in result["clips"] if clip["label"] is not None]
    return Outcome(
        tuple(str(clip["key"]) for clip in clips),
        tuple(str(clip["video"]) for clip in clips),
        np.array([clip["top5"][0]["label"] == clip["label"] for clip in clips], bool),
    )


def of_common_clips(pair: tuple[Outcome, Outcome]) -> tuple[Outcome, Outcome]:
    """Two tests, of those clips that both were of."""
    common = set(pair[0].keys) & set(pair[1].keys)
    return pair[0].of(common), pair[1].of(common)


def weighted_interval(outcomes: Sequence[tuple[float, Outcome]]) -> tuple[float, float]:
    """The confidence interval of a weighted sum of shares of clips right, such as a mean or a difference.

    Percentiles of the bootstrap over source videos. All tests see the same draws, so that of two tests of the same
    clips only what differs counts, and a video that several splits test on is drawn for all of them. The networks are
    taken as they are: nothing is said of another training's. Draws without any clip of one of the tests do not count.

    Args:
        outcomes: weight and test; each test of one clip at least.

    Returns:
        Lowest and highest. All that is possible where there is a single video, which says nothing of others.
    """
    names = sorted({video for _, outcome in outcomes for video in outcome.videos})
    if len(names) == 1:
        weights = [weight for weight, _ in outcomes]
        return math.fsum(min(0.0, weight) for weight in weights), math.fsum(max(0.0, weight) for weight in weights)
    place = {name: number for number, name in enumerate(names)}
    counts, rights = np.zeros((2, len(names), len(outcomes)))
    for column, (_, outcome) in enumerate(outcomes):
        video_of = [place[video] for video in outcome.videos]
        counts[:, column] = np.bincount(video_of, minlength=len(names))
        rights[:, column] = np.bincount(video_of, outcome.right, minlength=len(names))
    drawn = ((times @ rights, times @ counts) for times in draws(len(names)))
    shares = np.array([right / count for right, count in drawn if count.all()])
    low, high = np.quantile(shares @ np.array([weight for weight, _ in outcomes]), EDGES)
    return float(low), float(high)
