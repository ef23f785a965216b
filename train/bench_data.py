"""`i3d-train --bench-data`: how fast the loader is, and what its time goes to."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from manifests.sample import FormatError
from train.clock import WORK, Clock, Work
from train.loader import Batch

SECONDS = 20.0


@dataclass(frozen=True)
class LoaderSpeed:
    """What a stretch of loading came to."""

    seconds: float
    clips: int
    bytes_read: int
    shares: dict[Work, float]  # of the time of the workers and of the copy to the device, together 1

    def __str__(self) -> str:
        shares = ", ".join(f"{work} {100 * share:.0f} %" for work, share in self.shares.items())
        return (
            f"{self.clips / self.seconds:.1f} clips/s, {self.bytes_read / self.seconds / 1e6:.1f} MB/s read, "
            f"over {self.seconds:.0f} s; of the loader's time: {shares}"
        )


def bench_data(batches: Iterator[Batch], device: torch.device, seconds: float = SECONDS) -> LoaderSpeed:
    """Take batches as a trainer would that needs no time itself, for some seconds or until they end.

    Args:
        batches: of `train.loader.training_batches`, at least 2: the first, for which the workers start, is not counted.
        device: where the pixels are copied to.
        seconds: how long.

    Raises:
        FormatError: a sample that cannot be read or decoded, named.
    """
    next(batches)
    whole, clips, copies = Clock(), 0, []
    started = time.perf_counter()
    for batch in batches:
        if batch.bad:
            raise FormatError(batch.bad[0].message)
        copies.append(_copy(batch, device))
        clips += len(batch.labels)
        whole.add(batch.clock)
        if time.perf_counter() - started >= seconds:
            break
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    spent = time.perf_counter() - started
    whole.seconds["copy"] = sum(copy() for copy in copies)
    total = sum(whole.seconds.values())
    return LoaderSpeed(spent, clips, whole.bytes, {work: whole.seconds[work] / total for work in WORK})


def _copy(batch: Batch, device: torch.device) -> Callable[[], float]:
    """Copy a batch's pixels; gives what tells the seconds that it took, once the device is done."""
    if device.type != "cuda":
        started = time.perf_counter()
        for pixels in batch.pixels.values():
            pixels.to(device)
        spent = time.perf_counter() - started
        return lambda: spent
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    for pixels in batch.pixels.values():
        pixels.to(device, non_blocking=True)
    end.record()
    return lambda: start.elapsed_time(end) / 1e3
