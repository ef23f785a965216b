"""Decoding in worker processes: views of a plan as batches, and whole clips one by one. 8-bit pixels leave a worker."""

import atexit
import ctypes
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import active_children
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from manifests.sample import FormatError
from model import Stream
from pipeline.video import VideoError
from train.clock import Clock
from train.decode import MEMBER_OF, Crops, blank_window, training_window, whole_clip_crops
from train.plan import Plan, Share, View
from train.source_video import source_video
from train.stream import Sample, Samples, read_json

T = TypeVar("T")
MAXIMUM_WORKERS = 8  # by default
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Bad(NamedTuple):
    """A sample that cannot be used, where it lies, and why."""

    key: str
    shard: str
    message: str


class Batch(NamedTuple):
    """A part of a step's samples; `bad` ones have a weight of 0 and show nothing.

    Pixels of each stream, [B, T, rows, crop] uint8 (`train.decode.training_window`), class indices [B] int64, weights
    [B] float32 of 1 or 0; what the time went to.
    """

    pixels: dict[Stream, Tensor]
    labels: Tensor
    weights: Tensor
    bad: tuple[Bad, ...]
    clock: Clock


class Clip(NamedTuple):
    """A whole clip: pixels of each stream, [crops, T, rows, crop] uint8, and what its metadata says.

    `video` is the source that the clip was cut from, by name.
    """

    sample: Sample
    label: str | None
    class_index: int | None
    video: str
    crops: dict[Stream, Tensor]

    @property
    def pixels(self) -> dict[Stream, Tensor]:
        """Those of the centre crop, [T, rows, crop]."""
        return {stream: crops[len(crops) // 2] for stream, crops in self.crops.items()}


def decoding_processes(asked: int | None, sharing: int = 1) -> int:
    """How many processes decode: as asked or, by default, one a core but one, of a machine that so many share."""
    cores = (os.cpu_count() or 1) // sharing
    return asked if asked is not None else min(MAXIMUM_WORKERS, max(1, cores - 1))


def training_batches(
    samples: Samples,
    streams: Sequence[Stream],
    plan: Plan,
    steps: range,
    crop: int,
    share: Share = Share(),  # noqa: B008 — immutable
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """A rank's batches of some steps of a plan, `share.parts` a step, in order, whatever the number of workers.

    Raises:
        OSError: the samples cannot be reached.
    """
    yield from _loaded(_Windows(samples, streams, plan, crop, share), _Parts(steps, share.parts), workers, pin_memory)


def whole_clips(
    samples: Samples,
    streams: Sequence[Stream],
    crop: int,
    frames: int | None = None,
    workers: int = 0,
    crops: Crops = 1,
) -> Iterator[Clip | Bad]:
    """Every clip once, in order, as it is tested; or what is wrong with it.

    Args:
        samples: which clips.
        streams: decode these.
        crop: side of a crop, in pixels.
        frames: only so many from the middle; all by default.
        workers: processes that decode; 0 is this one.
        crops: the centre crop, or three along the longer side.

    Raises:
        OSError: the samples cannot be reached.
    """
    yield from _loaded(_WholeClips(samples, streams, crop, frames, crops), range(len(samples)), workers)


class _Parts(Sequence[tuple[int, int]]):
    """All (step, part) in order, of which a long training has millions."""

    def __init__(self, steps: range, parts: int) -> None:
        self.steps, self.parts = steps, parts

    def __len__(self) -> int:
        return len(self.steps) * self.parts

    def __getitem__(self, number: Any) -> Any:
        step, part = divmod(number, self.parts)
        return self.steps[step], part


class _Windows(Dataset):
    """(step, part) → its batch."""

    def __init__(self, samples: Samples, streams: Sequence[Stream], plan: Plan, crop: int, share: Share) -> None:
        self.samples, self.streams, self.plan, self.crop, self.share = samples, tuple(streams), plan, crop, share

    def __getitem__(self, place: tuple[int, int]) -> Batch:
        clock, (step, part) = Clock(), place
        views = self.plan.batch(step, self.share, part)
        windows = [self._window(view, clock) for view in views]
        bad = tuple(window for window in windows if isinstance(window, Bad))
        shown = [self._shown(window, view) for window, view in zip(windows, views, strict=True)]
        labels = self.samples.records["class_index"][[view.sample for view in views]]
        weights = torch.tensor([0.0 if isinstance(window, Bad) else 1.0 for window in windows])
        # In a worker, into memory that the trainer shares.
        pixels = {s: default_collate([torch.from_numpy(one[s]) for one in shown]) for s in self.streams}
        clock.lap("augment")
        return Batch(pixels, torch.from_numpy(labels.astype(np.int64)), weights, bad, clock)

    def _shown(self, window: dict[Stream, np.ndarray] | Bad, view: View) -> dict[Stream, np.ndarray]:
        if isinstance(window, Bad):
            return {s: blank_window(s, len(view.pictures[s]), self.crop) for s in self.streams}
        return window

    def _window(self, view: View, clock: Clock) -> dict[Stream, np.ndarray] | Bad:
        sample = self.samples[view.sample]
        try:
            members = sample.read(tuple(MEMBER_OF[s] for s in self.streams))
            videos = {s: _video(members, s) for s in self.streams}
            clock.bytes += sum(len(video) for video in videos.values())
            clock.lap("read")
            return {s: training_window(video, s, view, self.crop, clock) for s, video in videos.items()}
        except (FormatError, VideoError, ValueError) as error:
            return _bad(sample, error)


class _WholeClips(Dataset):
    """Number of a sample → the whole clip."""

    def __init__(
        self, samples: Samples, streams: Sequence[Stream], crop: int, frames: int | None, crops: Crops
    ) -> None:
        self.samples, self.streams, self.crop, self.frames, self.crops = samples, tuple(streams), crop, frames, crops

    def __getitem__(self, index: int) -> Clip | Bad:
        sample = self.samples[index]
        try:
            members = sample.read()
            metadata = read_json(members)
            some = self._middle(sample)
            videos = {s: _video(members, s) for s in self.streams}
            pixels = {s: whole_clip_crops(video, s, self.crop, self.crops, some) for s, video in videos.items()}
        except (FormatError, VideoError, ValueError) as error:
            return _bad(sample, error)
        crops = {s: torch.from_numpy(pictures) for s, pictures in pixels.items()}
        video = source_video(sample.key, metadata)
        return Clip(sample, metadata["label"], metadata["class_index"], video, crops)

    def _middle(self, sample: Sample) -> range | None:
        """The pictures that are wanted of a clip, the same of all streams."""
        there = min(int(sample.record[f"{stream}_frames"]) for stream in self.streams)
        if self.frames is None or self.frames >= there:
            return None
        start = (there - self.frames) // 2
        return range(start, start + self.frames)


def _video(members: dict[str, bytes], stream: Stream) -> bytes:
    if MEMBER_OF[stream] not in members:
        raise ValueError(f"no {stream}: prepared with --flow none?")
    return members[MEMBER_OF[stream]]


def _bad(sample: Sample, error: Exception) -> Bad:
    # An error of reading names shard and sample already, one of decoding knows neither.
    message = str(error) if isinstance(error, FormatError) else f"{sample.name}: {error}"
    return Bad(sample.key, sample.shard.name, message)


def _loaded(dataset: Dataset, indices: Sequence[Any], workers: int, pin_memory: bool = False) -> Iterator[Any]:
    """`dataset[i]` for each index, in order, from worker processes."""
    loader = DataLoader(
        _WithErrors(dataset),
        batch_size=None,
        sampler=indices,
        collate_fn=_unchanged,
        num_workers=min(workers, len(indices)),
        worker_init_fn=_live_and_die_with_the_trainer,
        pin_memory=pin_memory,
    )
    for item in loader:
        if isinstance(item, OSError):
            raise item
        yield item


@contextmanager
def naming_dead_workers() -> Iterator[None]:
    """Say in the block what has happened when a process that decodes has died: torch raises its error anywhere.

    Raises:
        ChildProcessError: one has died.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):  # what torch says, without a class of its own
            raise
        raise ChildProcessError(f"a process that decodes has died: {error}") from error


class _WithErrors(Dataset):
    """Hands errors that end a run over as values: raised in a worker, they would come with a traceback."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: Any) -> Any:
        try:
            return self.dataset[index]
        except OSError as error:
            return error


def _unchanged(item: T) -> T:
    return item


@atexit.register  # later than multiprocessing's own, and so before it: that would wait for them for ever
def kill_workers() -> None:
    """End the processes that decode: at a run's end, after an error, some may still be there that no SIGTERM ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would raise an error for each
    for child in active_children():
        child.kill()


def _live_and_die_with_the_trainer(_: int) -> None:
    """Ctrl-C and SIGTERM reach all processes of a terminal or job: the trainer stops its workers when it has saved.

    A killed trainer takes them along at once: a worker that lived on would hold the lease on the run's folder.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
