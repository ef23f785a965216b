"""Progress through clips or videos outside of training: a bar on a terminal, a plain line now and then in a log."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from functools import partial
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from train.loader import Bad

PLAIN_SECONDS = 15.0
WINDOW_SECONDS = 60.0
T = TypeVar("T")


def is_bad(item: object) -> bool:
    """Whether an item is a sample that cannot be used."""
    return isinstance(item, Bad)


def shown(items: Iterable[T], words: str, total: int, failed: Callable[[T], bool] = is_bad) -> Iterator[T]:
    """Pass items on, and say on the error stream how many of `total` there were, how fast, how many of them `failed`.

    The rate is that of the last minute, so that what an earlier run left, and passes at once, does not count for long.
    """
    console = Console(file=sys.stderr)
    plain = partial(TextColumn, markup=False)  # names of runs are strangers'
    columns = (plain("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    told = plain("{task.fields[told]}")
    said = time.monotonic()
    seen = deque([(said, 0)])
    failures = 0
    with Progress(*columns, told, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(words, total=total, told="")
        for number, item in enumerate(items, start=1):
            failures += failed(item)
            now = time.monotonic()
            seen.append((now, number))
            while len(seen) > 2 and now - seen[1][0] >= WINDOW_SECONDS:
                seen.popleft()
            rate = (number - seen[0][1]) / max(now - seen[0][0], 1e-9)
            line = f"{rate:.3g}/s{f'  {failures} failed' if failures else ''}"
            progress.update(task, completed=number, told=line)
            if not console.is_terminal and now - said >= PLAIN_SECONDS:
                left = timedelta(seconds=round((total - number) / rate))
                line = f"{words}: {number}/{total}  {line}  {left} left"
                console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)
                said = now
            yield item
