"""Shards from afar, brought to the node's cache before the plan reaches them."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from manifests.sample import FormatError
from train.plan import Plan
from train.stream import Samples


class Prefetch:
    """A thread that fetches the shards of the plan's windows, one window ahead of the step that is taken."""

    def __init__(self, samples: Samples, plan: Plan) -> None:
        self._samples, self._plan = samples, plan
        self._wanted: list[int] = []
        self._due: list[int] = []  # of those
        self._changed, self._ended = threading.Condition(), False

    def at(self, step: int) -> None:
        """Fetch what the steps from here on want."""
        wanted = [shard for ahead in (0, 1) for shard in self._plan.shards_of_window(step, ahead)]
        with self._changed:
            if wanted != self._wanted:
                self._wanted, self._due = wanted, wanted.copy()
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or self._due)
                if self._ended:
                    return
                number = self._due.pop(0)
            self._fetch(number)

    def _fetch(self, number: int) -> None:
        assert self._samples.cache is not None  # else there is no such thread
        try:
            self._samples.cache.fetch(self._samples.shards[number])
        except (OSError, FormatError) as error:  # whoever reads the shard will say it again, and end the run
            logging.getLogger(__name__).warning("%s", error)

    def end(self) -> None:
        """Fetch no more shards."""
        with self._changed:
            self._ended = True
            self._changed.notify()


@contextmanager
def prefetching(samples: Samples, plan: Plan) -> Iterator[Prefetch | None]:
    """A prefetch while the block runs; None where nothing is cached."""
    if samples.cache is None or not any(shard.is_remote for shard in samples.shards):
        yield None
        return
    prefetch = Prefetch(samples, plan)
    threading.Thread(target=prefetch._run, name="prefetch", daemon=True).start()  # a download does not hold up the end
    try:
        yield prefetch
    finally:
        prefetch.end()
