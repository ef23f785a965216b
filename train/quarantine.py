"""Samples that cannot be used: named in `RUN/quarantine.jsonl`, counted, and no more of them than a run may bear."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from manifests.clip import printable
from manifests.files import write_file
from manifests.sample import FormatError
from train.loader import Bad
from train.ranks import Ranks
from train.stream import Samples

FILE = "quarantine.jsonl"
LINE_BYTES = 1 << 16  # the folder may be a stranger's
MESSAGE_CHARACTERS = 300


class TooManyBad(Exception):
    """More samples are bad than the run was to bear, or all."""


class Quarantine:
    """The bad samples of a run, the same on all ranks; the first one writes them down.

    Args:
        folder: of the run.
        maximum: how many samples may be bad.
        samples: to train on, not all of which may be bad.
        ranks: that train.

    Raises:
        FormatError: the file of an earlier start cannot be read.
    """

    def __init__(self, folder: Path, maximum: int, samples: Samples, ranks: Ranks) -> None:
        self.file, self._maximum, self._samples, self._ranks = folder / FILE, maximum, samples, ranks
        self._bad = ranks.from_first(lambda: {bad.key: bad for bad in read_quarantine(self.file)})

    def __len__(self) -> int:
        return len(self._bad)

    def add(self, bad: Iterable[Bad]) -> None:
        """Note what all ranks have found, each its own; all must call this at the same time.

        Raises:
            TooManyBad: more than may be, or all to train on; names the last.
        """
        news = [found for found in self._ranks.gather(list(bad)) if found.key not in self._bad]
        self._bad |= {found.key: found for found in news}
        if news and self._ranks.first:
            lines = (json.dumps(found._asdict(), ensure_ascii=False) + "\n" for found in self._bad.values())
            write_file(self.file, "".join(lines).encode())
        if not news:
            return
        where = f"{self.file} names them, the last: {news[-1].message}"
        if len(self._bad) > self._maximum:
            raise TooManyBad(f"{len(self._bad)} samples are bad, more than --max-bad {self._maximum}; {where}")
        if all(sample.key in self._bad for sample in self._samples):
            raise TooManyBad(f"none of the {len(self._samples)} clips can be used; {where}")


def read_quarantine(file: Path) -> Iterator[Bad]:
    """The bad samples that a run has named; none where there is no such file.

    Raises:
        FormatError: a line that is none of ours.
    """
    if not file.exists():
        return
    with file.open("rb") as lines:
        number = 0
        while line := lines.readline(LINE_BYTES):
            number += 1
            try:
                if not line.endswith(b"\n"):
                    raise ValueError(f"longer than {LINE_BYTES} bytes, or not to its end")
                value = dict(json.loads(line))
                yield Bad(*(str(value[name]) for name in Bad._fields))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                said = printable(repr(error)[:MESSAGE_CHARACTERS])
                raise FormatError(f"{file}: line {number} names no bad sample: {said}") from error
