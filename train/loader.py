"""Decoding in worker processes: views of a plan as batches, and whole clips one by one. 8-bit pixels leave a worker."""

import ctypes
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from manifests.sample import FormatError
from model import Stream
from pipeline.video import VideoError
from train.clock import Clock
from train.decode import MEMBER_OF, training_window, whole_clip
from train.plan import Plan, View
from train.stream import Sample, Samples, read_json

T = TypeVar("T")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Batch(NamedTuple):
    """One step's samples: pixels [B, T, rows, crop] uint8, class indices [B] int64, and what the time went to."""

    pixels: Tensor
    labels: Tensor
    clock: Clock


class Clip(NamedTuple):
    """A whole clip: pixels of each stream, [T, rows, crop] uint8, and what its metadata says."""

    sample: Sample
    label: str | None
    class_index: int | None
    pixels: dict[Stream, Tensor]


def training_batches(
    samples: Samples, stream: Stream, plan: Plan, steps: range, crop: int, workers: int = 0, pin_memory: bool = False
) -> Iterator[Batch]:
    """The batches of some steps of a plan, in order, whatever the number of workers.

    Raises:
        FormatError: a sample that cannot be read or decoded, named.
    """
    yield from _loaded(_Windows(samples, stream, plan, crop), steps, workers, pin_memory)


def whole_clips(
    samples: Samples, streams: Sequence[Stream], crop: int, frames: int | None = None, workers: int = 0
) -> Iterator[Clip]:
    """Every clip once, in order, as it is tested.

    Args:
        samples: which clips.
        streams: decode these.
        crop: side of the centre crop, in pixels.
        frames: only so many from the middle; all by default.
        workers: processes that decode; 0 is this one.

    Raises:
        FormatError: a sample that cannot be read or decoded or that lacks a stream, named.
    """
    yield from _loaded(_WholeClips(samples, streams, crop, frames), range(len(samples)), workers)


class _Windows(Dataset):
    """Step → its batch."""

    def __init__(self, samples: Samples, stream: Stream, plan: Plan, crop: int) -> None:
        self.samples, self.stream, self.plan, self.crop = samples.samples, stream, plan, crop

    def __getitem__(self, step: int) -> Batch | FormatError:
        clock = Clock()
        views = self.plan.batch(step)
        try:
            windows = [torch.from_numpy(self._decoded(view, clock)) for view in views]
        except FormatError as error:
            return error
        labels = [int(self.samples[view.sample].record["class_index"]) for view in views]
        pixels = default_collate(windows)  # in a worker, into memory that the trainer shares
        clock.lap("augment")
        return Batch(pixels, torch.tensor(labels), clock)

    def _decoded(self, view: View, clock: Clock) -> np.ndarray:
        sample = self.samples[view.sample]
        video = sample.read((MEMBER_OF[self.stream],))[MEMBER_OF[self.stream]]
        clock.bytes += len(video)
        clock.lap("read")
        with _named(sample):
            return training_window(video, self.stream, view, self.crop, clock)


class _WholeClips(Dataset):
    """Number of a sample → the whole clip."""

    def __init__(self, samples: Samples, streams: Sequence[Stream], crop: int, frames: int | None) -> None:
        self.samples, self.streams, self.crop, self.frames = samples.samples, tuple(streams), crop, frames

    def __getitem__(self, index: int) -> Clip | FormatError:
        sample = self.samples[index]
        try:
            members = sample.read()
            metadata = read_json(members)
            pixels = {stream: self._decoded(sample, members, stream) for stream in self.streams}
        except FormatError as error:
            return error
        return Clip(sample, metadata["label"], metadata["class_index"], pixels)

    def _decoded(self, sample: Sample, members: dict[str, bytes], stream: Stream) -> Tensor:
        if MEMBER_OF[stream] not in members:
            raise FormatError(f"{sample.name} has no {stream}: prepared with --flow none?")
        with _named(sample):
            return torch.from_numpy(whole_clip(members[MEMBER_OF[stream]], stream, self.crop, self.frames))


@contextmanager
def _named(sample: Sample) -> Iterator[None]:
    """Say of which sample an error is."""
    try:
        yield
    except (VideoError, ValueError) as error:
        raise FormatError(f"{sample.name}: {error}") from error


def _loaded(dataset: Dataset, indices: range, workers: int, pin_memory: bool = False) -> Iterator[Any]:
    """`dataset[i]` for each index, in order, from worker processes."""
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=indices,
        collate_fn=_unchanged,
        num_workers=min(workers, len(indices)),
        worker_init_fn=_live_and_die_with_the_trainer,
        pin_memory=pin_memory,
    )
    for item in loader:
        # A worker hands its error over as a value: raised there, it would arrive with a traceback in its message.
        if isinstance(item, FormatError):
            raise item
        yield item


def _unchanged(item: T) -> T:
    return item


def _live_and_die_with_the_trainer(_: int) -> None:
    """Ctrl-C and SIGTERM reach all processes of a terminal or job: the trainer stops its workers when it has saved.

    A killed trainer takes them along at once: a worker that lived on would hold the lease on the run's folder.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
