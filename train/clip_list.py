"""The clips that a result is of: their hash, and those that the dataset's lists name and its snapshot lacks."""

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from manifests.index import LEDGER
from manifests.sample import FormatError
from train import remote
from train.loader import Bad
from train.stream import Samples

REPEATED = "repeated-row"  # names a clip that stands elsewhere in the lists, so none is missing


class Missing(NamedTuple):
    """What a dataset's ledger lists and a snapshot lacks.

    clips: `key`, `label`, `reason` each; the reason is None for one that a later snapshot has.
    unplaced: how many more there are of each reason whose split the ledger does not know: rows that could not be
        read, of labels that are none, and clips that were taken down.
    """

    clips: list[dict[str, str | None]]
    unplaced: dict[str, int]


class _Entry(NamedTuple):
    key: str
    label: str | None
    split: str | None
    memberships: list[str] | None
    reason: str | None


def clip_list(keys: Iterable[str], unreadable: Iterable[Bad], missing: Missing | None) -> dict[str, Any]:
    """What names a set of clips, as JSON values.

    Args:
        keys: of the clips that were tested.
        unreadable: those that are there and cannot be used.
        missing: the others of the split; None where that is not known.

    Returns:
        `sha256` of the sorted keys, each with a newline behind it; `found`, how many they are; `unreadable`,
        `key`, `shard` and `message` each; `missing` and `unplaced` of `Missing`, or None.
    """
    found = sorted(keys)
    return {
        "sha256": hashlib.sha256("".join(f"{key}\n" for key in found).encode()).hexdigest(),
        "found": len(found),
        "unreadable": [bad._asdict() for bad in unreadable],
        "missing": missing and missing.clips,
        "unplaced": missing and missing.unplaced,
    }


def missing_clips(samples: Samples, split: str | None) -> Missing | None:
    """What the ledger of a dataset lists for a split and the samples lack; None for tars, and without a ledger.

    Args:
        samples: all of the split.
        split: as it was given to `open_samples`; None is the whole dataset, rows that became no clip among it.

    Raises:
        FormatError: the ledger is damaged.
        OSError: its place cannot be reached.
    """
    if samples.dataset is None:
        return None
    there = {key.decode("ascii") for key in samples.records["key"].tolist()}
    missing: list[dict[str, str | None]] = []
    unplaced: Counter[str] = Counter()
    try:
        with _ledger(samples.dataset) as file:
            for entry in _entries(file, samples.dataset):
                if entry.key in there or entry.reason == REPEATED:
                    continue
                if split in (None, entry.split, *(entry.memberships or ())):
                    missing.append({"key": entry.key, "label": entry.label, "reason": entry.reason})
                elif entry.split is None and entry.memberships is None and entry.reason is not None:
                    unplaced[entry.reason] += 1
    except (FileNotFoundError, PermissionError):
        return None
    return Missing(missing, dict(sorted(unplaced.items())))


@contextmanager
def _ledger(dataset: str) -> Iterator[BinaryIO]:
    """The ledger of a dataset; one from afar is copied into a nameless file."""
    if not remote.is_remote(dataset):
        with (Path(dataset) / LEDGER).open("rb") as file:
            yield file
        return
    url = f"{dataset}/{LEDGER}"
    with tempfile.TemporaryFile() as copy:
        remote.download(url, remote.find(url).size, copy.fileno())
        yield copy


def _entries(file: BinaryIO, dataset: str) -> Iterator[_Entry]:
    name = remote.shown(dataset) if remote.is_remote(dataset) else dataset
    for number, line in enumerate(file, start=1):
        try:
            entry = _entry(json.loads(line))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FormatError(f"{name}/{LEDGER}:{number}: not an entry of a ledger: {error!r}") from error
        yield entry


def _entry(value: Any) -> _Entry:
    """The parts of an entry that matter here."""
    entry = _Entry(value["key"], value["label"], value["split"], value["memberships"], value["reason"])
    if not isinstance(entry.memberships, list | None):
        raise TypeError(f"memberships {entry.memberships!r} are no list")
    texts = (entry.label, entry.split, entry.reason, *(entry.memberships or ()))
    if not isinstance(entry.key, str) or not all(isinstance(text, str | None) for text in texts):
        raise ValueError("a field of another type than it has")
    return entry
