"""SIGINT and SIGTERM. In training: noted, and the end of a wait for data, which may be long; a step is finished."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from train.loader import kill_workers

T = TypeVar("T")
_END = object()


class _Interrupted(BaseException):
    """A signal came while data was waited for."""


class Signals:
    """Whether one has come."""

    def __init__(self) -> None:
        self.noted = False
        self._waiting = False

    def until(self, items: Iterator[T]) -> Iterator[T]:
        """The items that come before a signal does: one that comes while the next is waited for ends them at once."""
        try:
            while not self.noted:
                self._waiting = True
                item = _END if self.noted else next(items, _END)
                self._waiting = False
                if item is _END:
                    return
                yield item  # type: ignore[misc]
        except _Interrupted:
            kill_workers()  # torch would wait for each of them
        finally:
            self._waiting = False

    def _note(self, *_: object) -> None:
        self.noted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._waiting:
            self._waiting = False
            raise _Interrupted


@contextmanager
def noted_signals() -> Iterator[Signals]:
    """Note signals while the block runs; the second SIGINT interrupts as usual."""
    signals = Signals()
    before = {number: signal.signal(number, signals._note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def sigterm_ends() -> Iterator[None]:
    """End the program at SIGTERM as Ctrl-C does, while the block or function runs: what is temporary is removed."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
