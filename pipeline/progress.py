"""Progress of a run: a live table on a terminal, a plain line a minute elsewhere."""

import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

STAGES = ("fetch", "encode", "flow", "shards")
LIVE_SECONDS = 0.5
PLAIN_SECONDS = 60.0
# Rates are those of the last minutes: clips of one list differ, sources slow down, machines come and go.
WINDOW_SECONDS = 300.0
SAMPLE_SECONDS = 5.0


@dataclass
class Counts:
    """What has happened: clips and shards through a stage and in work, clips through by outcome."""

    done: Counter[str] = field(default_factory=Counter)  # by stage
    in_work: Counter[str] = field(default_factory=Counter)  # by stage
    outcomes: Counter[str] = field(default_factory=Counter)  # "ok" or a reason
    found: int = 0  # of the outcomes: clips that an earlier run had finished
    shards: int = 0  # that are planned


# Beam hands every step a pickled copy of what it was given, so counts that steps share with the display cannot travel
# with them: they are the module's. Steps in other processes (portable runners) do not reach them; there the runner
# shows what `pipeline.prep` counts.
_lock = threading.Lock()
_counts = Counts()


@contextmanager
def working(stage: str) -> Iterator[None]:
    """Note that one clip, or shard, is in work in a stage while the block runs, and through when it ends well."""
    with _lock:
        _counts.in_work[stage] += 1
    try:
        yield
    except BaseException:
        with _lock:
            _counts.in_work[stage] -= 1
        raise
    with _lock:
        _counts.in_work[stage] -= 1
        _counts.done[stage] += 1


def count(reason: str | None, *, found: bool = False) -> None:
    """Note one clip that is through, well (None) or with a reason; found: an earlier run had finished it."""
    with _lock:
        _counts.outcomes[reason or "ok"] += 1
        _counts.found += found


def count_shards(planned: int) -> None:
    """Note how many shards are to be written."""
    with _lock:
        _counts.shards += planned


class Row(NamedTuple):
    """One stage: clips or shards through, in work, and through a second over the last minutes (None: not known)."""

    done: int
    in_work: int
    per_second: float | None


class Meter:
    """Progress of `total` clips, `finished` of which an earlier run has left, from the moment it is made.

    Args:
        total: clips of the run.
        finished: those of them that need no work; they pass in no time, so no rate counts them.
        clock: seconds that only grow.
    """

    def __init__(self, total: int, finished: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.finished, self.clock = total, finished, clock
        with _lock:
            self.before = deepcopy(_counts)
        self.samples = deque([(clock(), self.before)])

    def look(self) -> None:
        """Take a sample of the counts, for the rates; to be called every few seconds."""
        now = self.clock()
        if now - self.samples[-1][0] >= SAMPLE_SECONDS:
            with _lock:
                self.samples.append((now, deepcopy(_counts)))
            while now - self.samples[1][0] >= WINDOW_SECONDS:
                self.samples.popleft()

    def outcomes(self) -> Counter[str]:
        """Clips through so far, by outcome."""
        with _lock:
            return _counts.outcomes - self.before.outcomes

    def row(self, stage: str) -> Row:
        """How a stage stands."""
        with _lock:
            done, in_work = _counts.done[stage], _counts.in_work[stage]
        then, counts = self.samples[0]
        return Row(done - self.before.done[stage], in_work, self._rate(done - counts.done[stage], then))

    @property
    def shards(self) -> int:
        """Shards that are planned; 0 until all clips are through."""
        return _counts.shards - self.before.shards

    @property
    def clips_per_second(self) -> float | None:
        """Clips worked on to their end a second, over the last minutes; None where none was."""
        then, counts = self.samples[0]
        with _lock:
            worked = _counts.outcomes.total() - _counts.found - counts.outcomes.total() + counts.found
        return self._rate(worked, then)

    def _rate(self, number: int, then: float) -> float | None:
        seconds = self.clock() - then
        return number / seconds if number and seconds > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """Until all clips are through, at the rate of the last minutes; None where that is not known."""
        with _lock:
            found = _counts.found - self.before.found
        worked = self.outcomes().total() - found
        left = self.total - max(self.finished, found) - worked
        if left <= 0:
            return 0.0
        return left / self.clips_per_second if self.clips_per_second else None

    def summary(self) -> str:
        """Clips through, rate, time left, failures by reason."""
        done = self.outcomes()
        through, failed = done.total(), {reason: done[reason] for reason in sorted(done) if reason != "ok"}
        by_reason = ", ".join(f"{reason} {number}" for reason, number in failed.items())
        finished = f" ({self.finished} found finished)" if self.finished else ""
        return (
            f"{through}/{self.total} clips{finished}  {_per_second(self.clips_per_second)} clips/s  "
            f"{_left(self.seconds_left)}  failed {sum(failed.values())}{f' ({by_reason})' if by_reason else ''}"
        )

    def line(self) -> str:
        """The progress in one line."""
        self.look()
        rows = {stage: self.row(stage) for stage in STAGES}
        stages = [
            f"{stage} {row.done}{self._of(stage)} +{row.in_work} in work {_per_second(row.per_second)}/s"
            for stage, row in rows.items()
            if row.done or row.in_work
        ]
        return "  |  ".join([self.summary(), *stages])

    def display(self) -> Group:
        """The progress as a table with a line below."""
        self.look()
        table = Table(box=None, padding=(0, 2, 0, 0))
        table.add_column("stage")
        for name in ("done", "in work", "per second"):
            table.add_column(name, justify="right", min_width=10)
        for stage in STAGES:
            row = self.row(stage)
            table.add_row(stage, f"{row.done}{self._of(stage)}", str(row.in_work), _per_second(row.per_second))
        return Group(table, Text(self.summary()))

    def _of(self, stage: str) -> str:
        return f"/{self.shards}" if stage == "shards" and self.shards else ""


@contextmanager
def shown_progress(total: int, finished: int = 0) -> Iterator[None]:
    """Show the progress of `total` clips on the error stream while the block runs; `finished` need no work."""
    meter, console, stop = Meter(total, finished), Console(file=sys.stderr), threading.Event()

    def plain() -> None:
        while not stop.wait(PLAIN_SECONDS):
            print(meter.line(), file=sys.stderr, flush=True)

    if console.is_terminal:
        with Live(console=console, refresh_per_second=1 / LIVE_SECONDS, get_renderable=meter.display):
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


def _per_second(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.3g}" if rate < 100 else f"{rate:.0f}"


def _left(seconds: float | None) -> str:
    if seconds is None:
        return "time left unknown"
    minutes, seconds_left = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours}:{minutes_left:02d}:{seconds_left:02d} left"
