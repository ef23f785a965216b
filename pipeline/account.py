"""What became of a dataset's clips, counted in one pass over the ledger, and the lists of them.

Memory does not grow with the ledger but for a few numbers a clip, which the quantiles want.
"""

import csv
import re
from array import array
from codecs import getwriter
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from heapq import heappush, heappushpop
from pathlib import Path
from typing import Any, NamedTuple

from manifests.files import complete_file
from manifests.sample import FRAME_RATE
from pipeline.ledger import REASONS, read_entries

MOST = 10  # clips that are named for their duplicated or dropped frames
YOUTUBE_KEY = re.compile(r"([A-Za-z0-9_-]{11})_([0-9]{6})_([0-9]{6})")  # that of a file ends with 12 digits in a row
MESSAGE_SHOWN = 500  # characters of an example

LABELLED, UNLABELLED, FILES, FAILURES = "clips.csv", "clips-unlabelled.csv", "clips-files.csv", "failures.csv"
COLUMNS = {
    LABELLED: ("label", "youtube_id", "time_start", "time_end", "split"),
    UNLABELLED: ("youtube_id", "time_start", "time_end", "split"),
    FILES: ("path", "label", "start", "end", "split"),
    FAILURES: ("key", "path", "label", "split", "reason", "policy", "attempts", "tried", "message"),
}
Write = Callable[[str, Sequence[object]], None]


class Kind(NamedTuple):
    """What clips are counted by; `reason` is None for those that came out well."""

    label: str | None
    split: str | None
    reason: str | None


class Share(NamedTuple):
    """Clips of a class or a split: how many were listed, how many are lost."""

    listed: int
    failed: int

    @property
    def lost(self) -> float:
        """Share of the listed clips that failed, 0…1."""
        return self.failed / self.listed


@dataclass
class Resampled:
    """Frames that resampling to 25 fps has shown again, or left out."""

    counts: array = field(default_factory=lambda: array("I"))  # a clip, in the order of `Account.frames`
    most: list[tuple[int, str, int]] = field(default_factory=list)  # number, key, stored frames of the worst clips

    def add(self, number: int, key: str, frames: int) -> None:
        """Note one clip."""
        self.counts.append(number)
        if number:
            push = heappush if len(self.most) < MOST else heappushpop
            push(self.most, (number, key, frames))


@dataclass
class Account:
    """What a ledger holds. Clips: each listed clip once. Rows: those of lists that became no clip."""

    clips: Counter[Kind] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)  # by reason
    rows_of_lists: Counter[tuple[str, str]] = field(default_factory=Counter)  # by list and reason
    examples: dict[str, tuple[str, str]] = field(default_factory=dict)  # by reason: key and message of one
    attempts: Counter[tuple[int, bool]] = field(default_factory=Counter)  # clips by attempts, and whether it went well
    versions: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, array] = field(default_factory=dict)  # by stage, of every clip that went through it
    first_tried: str = ""
    last_tried: str = ""
    # Of the clips that came out well:
    frames: array = field(default_factory=lambda: array("I"))
    missing_frames: array = field(default_factory=lambda: array("I"))  # of clips shorter than listed
    duplicated: Resampled = field(default_factory=Resampled)
    dropped: Resampled = field(default_factory=Resampled)
    rgb_bytes: array = field(default_factory=lambda: array("Q"))
    flow_bytes: array = field(default_factory=lambda: array("Q"))  # of clips with flow

    @property
    def ok(self) -> int:
        """Clips that came out well."""
        return sum(number for kind, number in self.clips.items() if kind.reason is None)

    @property
    def failed(self) -> Counter[str]:
        """Clips that failed, by reason."""
        found: Counter[str] = Counter()
        for kind, number in self.clips.items():
            if kind.reason is not None:
                found[kind.reason] += number
        return found

    @property
    def listed(self) -> int:
        """All rows: `listed` = `ok` + the sum of `failed` + the sum of `rows`."""
        return self.clips.total() + self.rows.total()

    def shares(self, *names: str) -> dict[tuple[str | None, ...], Share]:
        """Clips listed and failed by the named fields of `Kind`, those that lost most first."""
        listed: Counter[tuple[str | None, ...]] = Counter()
        failed: Counter[tuple[str | None, ...]] = Counter()
        for kind, number in self.clips.items():
            by = tuple(getattr(kind, name) for name in names)
            listed[by] += number
            failed[by] += number if kind.reason is not None else 0
        found = {by: Share(listed[by], failed[by]) for by in listed}
        return dict(sorted(found.items(), key=lambda item: (-item[1].lost, *(part or "" for part in item[0]))))

    def add(self, entry: dict[str, Any]) -> None:
        """Count one entry of the ledger."""
        reason = entry["reason"]
        if reason is not None:
            self.examples.setdefault(reason, (entry["key"], entry["message"][-MESSAGE_SHOWN:]))
        if entry["list"] is not None:
            self.rows[reason] += 1
            self.rows_of_lists[entry["list"], reason] += 1
            return
        self.clips[Kind(entry["label"], entry["split"], reason)] += 1
        self.attempts[entry["attempts"], reason is None] += 1
        if entry["versions"]:
            self.versions[", ".join(f"{name} {version}" for name, version in sorted(entry["versions"].items()))] += 1
        for stage, seconds in entry["seconds"].items():
            self.seconds.setdefault(stage, array("f")).append(seconds)
        if entry["tried"]:
            self.first_tried = min(self.first_tried or entry["tried"], entry["tried"])
            self.last_tried = max(self.last_tried, entry["tried"])
        if reason is None:
            self._add_stored(entry)

    def _add_stored(self, entry: dict[str, Any]) -> None:
        stored = entry["stored"]
        self.frames.append(stored["frames"])
        self.duplicated.add(stored["duplicated"], entry["key"], stored["frames"])
        self.dropped.add(stored["dropped"], entry["key"], stored["frames"])
        self.rgb_bytes.append(stored["rgb_bytes"])
        if stored["flow_bytes"]:
            self.flow_bytes.append(stored["flow_bytes"])
        start, end = _times(entry)
        if end is not None and stored["frames"] < round((end - start) * FRAME_RATE):
            self.missing_frames.append(round((end - start) * FRAME_RATE) - stored["frames"])


def take_account(folder: Path, lists: Path | None = None) -> Account:
    """Count the ledger of a dataset.

    Args:
        folder: the dataset's.
        lists: a folder for the exact lists: of the clips that came out well, which `kinetics-prep run` reads, and of
            what failed, with reasons and messages. By default none are written.

    Raises:
        FormatError: a damaged ledger.
    """
    account = Account()
    if lists is None:
        for entry in read_entries(folder):
            account.add(entry)
        return account
    with _lists(lists) as write:
        for entry in read_entries(folder):
            account.add(entry)
            write(*_listed(entry))
    return account


def _times(entry: dict[str, Any]) -> tuple[float, float | None]:
    if entry["file"] is not None:
        return entry["file"]["start_seconds"], entry["file"]["end_seconds"]
    match = YOUTUBE_KEY.fullmatch(entry["key"])
    assert match is not None  # a clip that comes from no file
    return float(match[2]), float(match[3])


def _listed(entry: dict[str, Any]) -> tuple[str, Sequence[object]]:
    """The list that an entry belongs to, and its row there."""
    file, label, split, reason = entry["file"], entry["label"], entry["split"] or "", entry["reason"]
    if reason is not None:
        path, when = file["path"] if file else "", REASONS[reason].policy
        said = (path, label, split, reason, when, entry["attempts"], entry["tried"], entry["message"])
        return FAILURES, (entry["key"], *said)
    start, end = _times(entry)
    if file is not None:
        return FILES, (file["path"], label, _number(start), "" if end is None else _number(end), split)
    assert end is not None  # as every clip of Kinetics
    row = (entry["key"][:11], _number(start), _number(end), split)
    # A list with a column of labels wants them in every split but the test split.
    return (UNLABELLED, row) if label is None else (LABELLED, (label, *row))


def _number(seconds: float) -> str:
    return f"{seconds:.9f}".rstrip("0").rstrip(".")


@contextmanager
def _lists(folder: Path) -> Iterator[Write]:
    """A function that appends a row to a list of that name; lists without rows are not there afterwards."""
    writers: dict[str, Any] = {}
    with ExitStack() as files:

        def write(name: str, row: Sequence[object]) -> None:
            if name not in writers:
                file = files.enter_context(complete_file(folder / name))
                writers[name] = csv.writer(getwriter("utf-8")(file), lineterminator="\n")
                writers[name].writerow(COLUMNS[name])
            writers[name].writerow(row)

        yield write
        for name in COLUMNS.keys() - writers.keys():
            (folder / name).unlink(missing_ok=True)
