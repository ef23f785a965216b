"""What a training run sees, in which order: a pure function of (snapshot, seed, step). No torch, no files, no state.

Every epoch is a new order of all samples; batches follow each other without a gap, so one may hold the end of an epoch
and the beginning of the next. The order spans the dataset and yet stays local: the shards are shuffled, and then the
samples of every few shards in a row, a window of them, so that a node needs the shards of two windows at a time. All
random numbers of an epoch are drawn at once from a generator that is keyed by (seed, epoch): a sample's row has its
place in the order, its pictures, crop and flip.

A global batch has its samples whoever loads them: ranks, and the parts of a rank's gradient, take slices of it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

WINDOW_SHARDS = 32
_COLUMNS = 5  # order, pictures, top, left, flip

# By stream, numbers of stored pictures, in the order in which a network sees them.
Pictures = Mapping[Any, Sequence[int]]
# Which pictures of a clip are seen, by how many it has and a random number from 0 to 1: each architecture has its own.
Sampler = Callable[[int, float], Pictures]


class View(NamedTuple):
    """What is seen of one sample: some of its pictures, a crop of them, perhaps mirrored."""

    sample: int  # its number among the run's samples
    pictures: Pictures
    top: float  # 0 ≤ top < 1: where the crop lies in the room that the picture leaves it
    left: float
    flip: bool


class Share(NamedTuple):
    """Whose part of a global batch: one of the ranks, and of the parts that its gradient is summed from."""

    rank: int = 0
    ranks: int = 1
    parts: int = 1


@dataclass(frozen=True, eq=False)
class Plan:
    """The order of a run's samples and the view of each.

    Attributes:
        clip_frames: [N] ints, the stored pictures of each sample; where several streams are seen, of the shortest.
        shard_of: [N] ints from 0, the shard that each sample lies in.
        sampler: which pictures of a clip are seen.
        batch_size: samples of a step, of all ranks together.
        seed: any number from 0 to 2⁶³ − 1.
        flip: mirror half of the views.
    """

    clip_frames: np.ndarray
    shard_of: np.ndarray
    sampler: Sampler
    batch_size: int
    seed: int = 0
    flip: bool = True

    def batch(self, step: int, share: Share = Share(), part: int = 0) -> list[View]:  # noqa: B008 — immutable
        """The views of a part of a rank's share of a step; the first step is 0."""
        size = self.batch_size // (share.ranks * share.parts)
        first = step * self.batch_size + (share.rank * share.parts + part) * size
        views: list[View] = []
        while len(views) < size:
            epoch, within = divmod(first + len(views), len(self.clip_frames))
            views += self._views(epoch, within, min(size - len(views), len(self.clip_frames) - within))
        return views

    def epoch(self, step: int) -> float:
        """How often all samples have been seen when `step` steps are done."""
        return step * self.batch_size / len(self.clip_frames)

    def shards_of_window(self, step: int, ahead: int = 0) -> list[int]:
        """The shards that the first sample of a step lies among, or those of a window further on; in their order."""
        epoch, within = divmod(step * self.batch_size, len(self.clip_frames))
        table = _epoch(self, epoch)
        window = int(table.window_of[self.shard_of[table.order[within]]]) + ahead
        windows = -(-len(table.window_of) // WINDOW_SHARDS)
        epochs_on, window = divmod(window, windows)
        shards = _epoch(self, epoch + epochs_on).shards
        return [int(shard) for shard in shards[window * WINDOW_SHARDS : (window + 1) * WINDOW_SHARDS]]

    def _views(self, epoch: int, within: int, count: int) -> list[View]:
        table = _epoch(self, epoch)
        samples = table.order[within : within + count]
        drawn = zip(samples.tolist(), self.clip_frames[samples].tolist(), table.draws[samples].tolist(), strict=True)
        return [
            View(sample, self.sampler(frames, draw), top, left, self.flip and flip < 0.5)
            for sample, frames, (_, draw, top, left, flip) in drawn
        ]


class _Epoch(NamedTuple):
    """The tables of an epoch: numbers of samples in order, random numbers [N, 5], shards in order, window of each."""

    order: np.ndarray
    draws: np.ndarray
    shards: np.ndarray
    window_of: np.ndarray


@lru_cache(maxsize=2)  # a batch may straddle two epochs
def _epoch(plan: Plan, epoch: int) -> _Epoch:
    """The tables of an epoch.

    Raw bits of a counter-based generator: numpy promises those for ever, its distributions it does not.
    """
    shard_of = plan.shard_of
    generator = np.random.Philox(key=np.array([plan.seed, epoch], np.uint64))
    draws = _uniform(generator, len(shard_of) * _COLUMNS).reshape(-1, _COLUMNS)
    shards = np.argsort(_uniform(generator, int(shard_of.max()) + 1), kind="stable")
    window_of = np.empty_like(shards)
    window_of[shards] = np.arange(len(shards)) // WINDOW_SHARDS
    return _Epoch(np.lexsort((draws[:, 0], window_of[shard_of])), draws, shards, window_of)


def _uniform(generator: np.random.Philox, count: int) -> np.ndarray:
    """[count] numbers from 0 to 1, 1 excluded."""
    return (generator.random_raw(count) >> np.uint64(11)) * 2.0**-53
