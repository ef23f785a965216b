"""What became of every listed clip: one current outcome each, with the reason and the raw message of a failure."""

import json
import shutil
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from manifests.clip import Clip
from manifests.files import complete_file, write_file
from manifests.lists import Listing
from manifests.sample import FormatError

# What a reason means for the runs after: nothing will change by itself; or the next run tries again.
PERMANENT, LATER = "permanent", "later"
WITHDRAWN, UNDER_WAY = "withdrawn", "under way"


class Reason(NamedTuple):
    """Why a clip failed: what that means, and whether later runs try it again unasked."""

    meaning: str
    policy: str


# The closed list of reasons.
REASONS = {
    "bad-row": Reason("the list's row cannot be read", LATER),
    "repeated-row": Reason("the clip stands in the lists already", LATER),
    "unknown-label": Reason("the label is not in the class list", LATER),
    "missing": Reason("there is no such video", LATER),
    "private": Reason("the video is private", PERMANENT),
    "removed": Reason("the video or its channel was removed", PERMANENT),
    "region": Reason("the video is not shown in this country", PERMANENT),
    "age": Reason("the video wants a viewer whose age is known", PERMANENT),
    "login": Reason("the video is for members, or wants a login", PERMANENT),
    "blocked": Reason("the source refuses this machine", LATER),
    "throttled": Reason("the source says that it was asked too often", LATER),
    "fetch-failed": Reason("the download failed", LATER),
    "timeout": Reason("a tool had not ended by its deadline", LATER),
    "killed": Reason("a tool was killed", LATER),
    "empty-file": Reason("the file has no bytes", PERMANENT),
    "not-a-video": Reason("the file is no video", PERMANENT),
    "no-video-stream": Reason("the file holds no video stream", PERMANENT),
    "odd-shape": Reason("the picture is far too long and narrow", PERMANENT),
    "too-large": Reason("decoding or storing it wants more than a worker may have", PERMANENT),
    "too-short": Reason("fewer frames than the networks take", PERMANENT),
    "too-long": Reason("longer than a clip may be", PERMANENT),
    "corrupt": Reason("the video cannot be decoded", PERMANENT),
    WITHDRAWN: Reason("taken down with `purge`", PERMANENT),
}
RETRYABLE = tuple(reason for reason in REASONS if reason != WITHDRAWN)
LEDGER = "ledger/outcomes.jsonl"
FAILURES = "ledger/failures"  # of the run that is under way: a file a clip, so that a crash forgets none
ENTRY_FIELDS = {"key", "list", "label", "split", "reason", "message", "attempts", "seconds", "tried"}


@dataclass(frozen=True)
class Outcome:
    """What became of one clip in one run; `reason` None means well, else one of `REASONS` with the raw message."""

    clip: Clip
    reason: str | None = None
    message: str = ""
    seconds: dict[str, float] = field(default_factory=dict)  # wall-clock seconds by stage


def is_due(entry: dict[str, Any] | None, retry: Collection[str]) -> bool:
    """Whether a run works on a clip that is not published, by what the ledger says of it.

    Args:
        entry: the ledger's; None for a clip that is new.
        retry: reasons to try again though they are permanent.
    """
    reason = entry["reason"] if entry else None
    return reason is None or REASONS[reason].policy == LATER or reason in retry


def read_ledger(folder: Path) -> dict[str, dict[str, Any]]:
    """The ledger of a dataset by key, in the order of the keys; empty where there is none.

    Raises:
        FormatError: a line that is no entry; names it.
    """
    path = folder / LEDGER
    if not path.exists():
        return {}
    entries = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            entry = _read_entry(line, f"{path}:{number}")
            entries[entry["key"]] = entry
    return entries


def _read_entry(line: bytes, place: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
        if entry.keys() != ENTRY_FIELDS or not (entry["reason"] is None or entry["reason"] in REASONS):
            raise ValueError("not an entry of a ledger")
    except (ValueError, TypeError, AttributeError) as error:
        raise FormatError(f"{place}: {error}") from error
    return dict(entry)


def record_rejected(folder: Path, listing: Listing) -> None:
    """Put the rows that became no clip into the ledger, in place of those of the same lists' earlier readings."""
    entries = {key: entry for key, entry in read_ledger(folder).items() if entry["list"] not in listing.names}
    for row in listing.rejected:
        entries[row.place] = _entry(row.place, None, None, row.reason, row.message, {}, 0, row.list_name, "")
    _write(folder, entries.values())


def record_outcomes(folder: Path, outcomes: Iterable[Outcome]) -> None:
    """Put what became of a run's clips into the ledger."""
    _record(folder, map(_outcome_entry, outcomes))


def note_failure(folder: Path, outcome: Outcome) -> None:
    """Keep a clip's failure until the run's end, when the ledger gets it; or the next run's, after a crash."""
    entry = _outcome_entry(outcome)
    write_file(folder / FAILURES / f"{outcome.clip.key}.json", json.dumps(entry, ensure_ascii=False).encode())


def adopt_failures(folder: Path) -> None:
    """Put the failures that a killed run noted into the ledger."""
    files = sorted((folder / FAILURES).glob("*.json"))
    if files:
        _record(folder, [_read_entry(file.read_bytes(), str(file)) for file in files])
    forget_failures(folder)


def forget_failures(folder: Path) -> None:
    """Remove the notes of failures, once they stand in the ledger."""
    shutil.rmtree(folder / FAILURES, ignore_errors=True)


def record_withdrawn(folder: Path, keys: Iterable[str]) -> None:
    """Note that clips are to be taken down; how they came to be there is forgotten with them."""
    entries = read_ledger(folder)
    for key in keys:
        attempts = entries[key]["attempts"] if key in entries else 0
        entries[key] = _entry(key, None, None, WITHDRAWN, UNDER_WAY, {}, attempts, None, _now())
    _write(folder, entries.values())


def being_withdrawn(folder: Path) -> set[str]:
    """Clips whose takedown is not known to be finished."""
    waiting = WITHDRAWN, UNDER_WAY
    return {key for key, entry in read_ledger(folder).items() if (entry["reason"], entry["message"]) == waiting}


def record_withdrawal_finished(folder: Path, keys: Iterable[str]) -> None:
    """Note that nothing is left of these clips but their keys."""
    entries = read_ledger(folder)
    for key in keys:
        entries[key]["message"] = ""
    _write(folder, entries.values())


def _record(folder: Path, news: Iterable[dict[str, Any]]) -> None:
    entries = read_ledger(folder)
    for entry in news:
        if entry["key"] in entries and entries[entry["key"]]["reason"] == WITHDRAWN:
            continue  # for good
        attempts = entries[entry["key"]]["attempts"] if entry["key"] in entries else 0
        entries[entry["key"]] = {**entry, "attempts": attempts + 1}
    _write(folder, entries.values())


def _outcome_entry(outcome: Outcome) -> dict[str, Any]:
    clip = outcome.clip
    return _entry(clip.key, clip.label, clip.split, outcome.reason, outcome.message, outcome.seconds, 0, None, _now())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def totals(entries: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Count a ledger: `listed` = `ok` + the sum of `failed`, which counts by reason."""
    reasons = Counter(entry["reason"] for entry in entries)
    ok = reasons.pop(None, 0)
    return {"listed": ok + reasons.total(), "ok": ok, "failed": dict(sorted(reasons.items()))}


def _entry(
    key: str,
    label: str | None,
    split: str | None,
    reason: str | None,
    message: str,
    seconds: dict[str, float],
    attempts: int,
    list_name: str | None,
    tried: str,
) -> dict[str, Any]:
    if reason is not None and reason not in REASONS:
        raise ValueError(f"reason {reason!r} is not in the ledger's list")
    return {
        "key": key,
        "list": list_name,  # of rows that became no clip
        "label": label,
        "split": split,
        "reason": reason,
        "message": message,
        "attempts": attempts,
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        "tried": tried,  # when, in UTC
    }


def _write(folder: Path, entries: Iterable[dict[str, Any]]) -> None:
    with complete_file(folder / LEDGER) as file:
        for entry in sorted(entries, key=lambda entry: str(entry["key"])):
            file.write(json.dumps(entry, ensure_ascii=False, sort_keys=True).encode() + b"\n")
