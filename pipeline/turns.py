"""How many clips are fetched and computed at a time in this process.

Beam's in-process runner deals the clips out to its threads once, up front: with as many threads as workers, one may
still have minutes of work when the others are through. So it gets several threads a worker, and the heavy work waits
for its turn here; downloads overlap with computing. Under other runners there is a turn for each core.

A GPU is through with a clip's flow long before a core has decoded its pictures and encoded its flow. So all threads of
one process feed the machine's GPUs: each decodes and encodes its own clip, and takes a GPU for some pictures at a time.
"""

import contextlib
import os
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

THREADS_PER_WORKER = 4  # a Beam worker takes some .1 s to start in each stage
GPU = "gpu"  # of a clip's seconds: those of its flow that it had a GPU

# Of the module, because Beam hands every step a pickled copy of what it was given.
_fetching: AbstractContextManager[object] = contextlib.nullcontext()
_computing: AbstractContextManager[object] = threading.Semaphore(os.cpu_count() or 1)
_free_gpus: queue.SimpleQueue[str] | None = None
_next_download: dict[str, float] = {}
_dealing = threading.Lock()


def limit(workers: int) -> None:
    """From now on at most `workers` clips are fetched at a time in this process, and as many computed."""
    global _fetching, _computing
    _fetching, _computing = threading.Semaphore(workers), threading.Semaphore(workers)


def to_fetch() -> AbstractContextManager[object]:
    """The block waits for its turn to download."""
    return _fetching


def to_compute() -> AbstractContextManager[object]:
    """The block waits for its turn to use a core."""
    return _computing


@contextmanager
def on_gpu(seconds: dict[str, float]) -> Iterator[str]:
    """The block waits for a GPU that is free, and has it alone; gives its name.

    Args:
        seconds: how long the block had it is added to `GPU` here.
    """
    free = _gpus()
    device = free.get()
    started = time.monotonic()
    try:
        yield device
    finally:
        seconds[GPU] = seconds.get(GPU, 0.0) + time.monotonic() - started
        free.put(device)


def gpu_count() -> int:
    """GPUs of this machine that torch can use."""
    try:
        import torch  # an extra of the project, and slow to import
    except ImportError:
        return 0
    return int(torch.cuda.device_count())


def busy_share(gpu_seconds: float, elapsed_seconds: float) -> float:
    """How much of a stretch of time this machine's GPUs were held, 0 to 1."""
    return gpu_seconds / (elapsed_seconds * max(1, gpu_count()))


def _gpus() -> queue.SimpleQueue[str]:
    global _free_gpus
    with _dealing:
        if _free_gpus is None:
            _free_gpus = queue.SimpleQueue()
            for number in range(gpu_count()):
                _free_gpus.put(f"cuda:{number}")
        return _free_gpus


def wait_for_rate(source: str, downloads_per_minute: float | None) -> None:
    """Wait until this process may begin another download from a source: evenly spaced, no bursts; None: at once."""
    if downloads_per_minute is None:
        return
    with _dealing:
        now = time.monotonic()
        begin = max(now, _next_download.get(source, now))
        _next_download[source] = begin + 60 / downloads_per_minute
    time.sleep(begin - now)
