"""Progress of a run: a live display on a terminal, a plain line now and then elsewhere."""

import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live

# Beam hands every step a pickled copy of what it was given, so a counter that steps share with the display cannot
# travel with them: it is the module's. Steps in other processes (portable runners) do not reach it; there the runner
# shows its own progress.
_lock = threading.Lock()
_finished: Counter[str] = Counter()

LIVE_SECONDS = 0.5
PLAIN_SECONDS = 15.0


def count(reason: str | None) -> None:
    """Note one clip that is through, well (None) or with a reason."""
    with _lock:
        _finished[reason or "ok"] += 1


class Meter:
    """Rate, remaining time and failures so far of `total` clips, from the moment it is made."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.started = time.monotonic()
        with _lock:
            self.before = _finished.copy()

    def line(self) -> str:
        """The progress in one line."""
        with _lock:
            done = _finished - self.before
        through, seconds = done.total(), time.monotonic() - self.started
        rate = through / seconds if seconds else 0.0
        left = f"{_duration((self.total - through) / rate)} left" if through else "time left unknown"
        failures = ", ".join(f"{reason} {number}" for reason, number in sorted(done.items()) if reason != "ok")
        failed = f"failed {through - done['ok']}" + (f" ({failures})" if failures else "")
        return f"{through}/{self.total} clips  {60 * rate:.1f} clips/min  {left}  {failed}"


@contextmanager
def shown_progress(total: int) -> Iterator[None]:
    """Show the progress of `total` clips on the error stream while the block runs."""
    meter, console, stop = Meter(total), Console(file=sys.stderr), threading.Event()

    def plain() -> None:
        while not stop.wait(PLAIN_SECONDS):
            print(meter.line(), file=sys.stderr, flush=True)

    if console.is_terminal:
        with Live(console=console, refresh_per_second=1 / LIVE_SECONDS, get_renderable=meter.line):
            yield
    else:
        thread = threading.Thread(target=plain, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            print(meter.line(), file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    minutes, seconds_left = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours}:{minutes_left:02d}:{seconds_left:02d}"
