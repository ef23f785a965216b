"""What became of every listed clip: one current outcome each, with the reason and the raw message of a failure."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from manifests.clip import Clip
from manifests.files import complete_file
from manifests.lists import Listing
from manifests.sample import FormatError

# The closed list of reasons, each with what it means.
REASONS = {
    "bad-row": "the list's row cannot be read",
    "repeated-row": "the clip stands in the lists already",
    "unknown-label": "the label is not in the class list",
    "missing": "there is no such video",
    "fetch-failed": "the download failed",
    "timeout": "a tool had not ended by its deadline",
    "killed": "a tool was killed",
    "empty-file": "the file has no bytes",
    "not-a-video": "the file is no video",
    "no-video-stream": "the file holds no video stream",
    "odd-shape": "the picture is far too long and narrow",
    "too-short": "fewer frames than the networks take",
    "too-long": "longer than a clip may be",
    "corrupt": "the video cannot be decoded",
}
LEDGER = "ledger/outcomes.jsonl"
ENTRY_FIELDS = {"key", "list", "label", "split", "reason", "message", "attempts", "seconds"}


@dataclass(frozen=True)
class Outcome:
    """What became of one clip in one run; `reason` None means well, else one of `REASONS` with the raw message."""

    clip: Clip
    reason: str | None = None
    message: str = ""
    seconds: dict[str, float] = field(default_factory=dict)  # wall-clock seconds by stage


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
            try:
                entry = json.loads(line)
                if entry.keys() != ENTRY_FIELDS or entry["reason"] not in (None, *REASONS):
                    raise ValueError("not an entry of a ledger")
            except (ValueError, AttributeError) as error:
                raise FormatError(f"{path}:{number}: {error}") from error
            entries[entry["key"]] = entry
    return entries


def record_rejected(folder: Path, listing: Listing) -> None:
    """Put the rows that became no clip into the ledger, in place of those of the same lists' earlier readings."""
    entries = {key: entry for key, entry in read_ledger(folder).items() if entry["list"] not in listing.names}
    for row in listing.rejected:
        entries[row.place] = _entry(row.place, None, None, row.reason, row.message, {}, 0, row.list_name)
    _write(folder, entries.values())


def record_outcomes(folder: Path, outcomes: Iterable[Outcome]) -> None:
    """Put what became of clips into the ledger."""
    entries = read_ledger(folder)
    for outcome in outcomes:
        clip = outcome.clip
        attempts = entries[clip.key]["attempts"] + 1 if clip.key in entries else 1
        entries[clip.key] = _entry(
            clip.key, clip.label, clip.split, outcome.reason, outcome.message, outcome.seconds, attempts
        )
    _write(folder, entries.values())


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
    list_name: str | None = None,
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
    }


def _write(folder: Path, entries: Iterable[dict[str, Any]]) -> None:
    with complete_file(folder / LEDGER) as file:
        for entry in sorted(entries, key=lambda entry: str(entry["key"])):
            file.write(json.dumps(entry, ensure_ascii=False, sort_keys=True).encode() + b"\n")
