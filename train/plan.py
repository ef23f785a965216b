"""What a training run sees, in which order: a pure function of (index, seed, step). No torch, no files, no state.

Every epoch is a new permutation of all samples; batches follow each other without a gap, so one may hold the end of an
epoch and the beginning of the next. All random numbers of an epoch are one table, drawn at once from a generator that
is keyed by (seed, epoch): the row of a sample has its place in the order, its window, crop and flip.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from manifests.sample import MINIMUM_FRAMES

_COLUMNS = 5  # order, start, top, left, flip


@dataclass(frozen=True)
class View:
    """What is seen of one sample: a window of frames, a crop of it, perhaps mirrored."""

    sample: int  # its number among the run's samples
    pictures: range | tuple[int, ...]  # their numbers; they ascend, but begin again at 0 where the clip is over
    top: float  # 0 ≤ top < 1: where the crop lies in the room that the picture leaves it
    left: float
    flip: bool


@dataclass(frozen=True, eq=False)
class Plan:
    """The order of a run's samples and the view of each.

    Attributes:
        clip_frames: [N] ints, the stored pictures of each sample of the stream that is trained.
        frames: pictures of a window.
        batch_size: samples of a step.
        seed: any number from 0 to 2⁶³ − 1.
        flip: mirror half of the views.
    """

    clip_frames: Sequence[int] | np.ndarray
    frames: int
    batch_size: int
    seed: int = 0
    flip: bool = True

    def batch(self, step: int) -> list[View]:
        """The views of a step; the first step is 0."""
        first = step * self.batch_size
        return [self._view(place) for place in range(first, first + self.batch_size)]

    def epoch(self, step: int) -> float:
        """How often all samples have been seen when `step` steps are done."""
        return step * self.batch_size / len(self.clip_frames)

    def _view(self, place: int) -> View:
        epoch, within = divmod(place, len(self.clip_frames))
        order, draws = _draws(self.seed, epoch, len(self.clip_frames))
        sample = int(order[within])
        start, top, left, flip = draws[sample, 1:].tolist()
        room = max(int(self.clip_frames[sample]) - self.frames, 0)
        first, stop = int(start * (room + 1)), int(self.clip_frames[sample])
        pictures: range | tuple[int, ...] = range(first, first + self.frames)
        if first + self.frames > stop or self.frames < MINIMUM_FRAMES:
            count = max(self.frames, MINIMUM_FRAMES)
            pictures = tuple((first + k % self.frames) % stop for k in range(count))
        return View(sample, pictures, top, left, self.flip and flip < 0.5)


@lru_cache(maxsize=2)  # a batch may straddle two epochs
def _draws(seed: int, epoch: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """The order of an epoch, [N] sample numbers, and its random numbers, [N, 5] in [0, 1).

    Raw bits of a counter-based generator: numpy promises those for ever, its distributions it does not.
    """
    bits = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(samples * _COLUMNS)
    draws = (bits >> np.uint64(11)).reshape(samples, _COLUMNS) * 2.0**-53
    return np.argsort(draws[:, 0], kind="stable"), draws
