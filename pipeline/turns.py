"""How many clips are fetched and computed at a time in this process.

Beam's in-process runner deals the clips out to its threads once, up front: with as many threads as workers, one may
still have minutes of work when the others are through. So it gets several threads a worker, and the heavy work waits
for its turn here; downloads overlap with computing. Under other runners nothing is limited, every turn comes at once.
"""

import contextlib
import threading
import time
from contextlib import AbstractContextManager

THREADS_PER_WORKER = 8

# Of the module, because Beam hands every step a pickled copy of what it was given.
_fetching: AbstractContextManager[object] = contextlib.nullcontext()
_computing: AbstractContextManager[object] = contextlib.nullcontext()
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


def wait_for_rate(source: str, downloads_per_minute: float | None) -> None:
    """Wait until this process may begin another download from a source: evenly spaced, no bursts; None: at once."""
    if downloads_per_minute is None:
        return
    with _dealing:
        now = time.monotonic()
        begin = max(now, _next_download.get(source, now))
        _next_download[source] = begin + 60 / downloads_per_minute
    time.sleep(begin - now)
