"""What became of every listed clip: one current outcome each, with the reason and the raw message of a failure."""

import json
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from manifests.clip import Clip
from manifests.files import complete_file, names_in, remove_folder, write_file
from manifests.index import LEDGER
from manifests.lists import Listing
from manifests.sample import FormatError

# What a reason means: nothing will change by itself; the next run tries again; so does this one, after a wait.
PERMANENT, LATER, AGAIN = "permanent", "later", "again"
WITHDRAWN, UNDER_WAY = "withdrawn", "under way"


class Reason(NamedTuple):
    """Why a clip failed: what that means, and whether it is tried again unasked, and when."""

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
    "upcoming": Reason("a live event or a premiere that has no recording yet", LATER),
    "age": Reason("the video wants a viewer whose age is known", PERMANENT),
    "login": Reason("the video is for members, or wants a login", PERMANENT),
    "encrypted": Reason("the video is encrypted (DRM)", PERMANENT),
    "blocked": Reason("the source refuses this machine", LATER),
    "throttled": Reason("the source says that it was asked too often", AGAIN),
    "unreachable": Reason("the source's server, or the proxy, cannot be reached", AGAIN),
    "fetch-failed": Reason("the download failed", LATER),
    "timeout": Reason("a server or a tool had not ended by its deadline", LATER),
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
NOTES = "ledger/notes"  # of the run that is under way: a file a clip, so that a crash forgets none
ENTRY_FIELDS = {
    *("key", "list", "file", "label", "split", "memberships", "reason", "message"),
    *("attempts", "tried", "seconds", "stored", "versions"),
}
READERS = 32  # of notes at a time, each of which is a round trip in a bucket


@dataclass(frozen=True)
class Outcome:
    """What became of one clip in one run; `reason` None means well, else one of `REASONS` with the raw message."""

    clip: Clip
    reason: str | None = None
    message: str = ""
    seconds: dict[str, float] = field(default_factory=dict)  # wall-clock seconds by stage
    stored: dict[str, int] = field(default_factory=dict)  # frames, duplicated, dropped, bytes of a finished clip
    versions: dict[str, str] = field(default_factory=dict)  # of the programs that did the work


def is_due(reason: str | None, retry: Collection[str]) -> bool:
    """Whether a run works on a clip that is not published.

    Args:
        reason: the ledger's; None for a clip that is new.
        retry: reasons to try again though they are permanent.
    """
    return reason is None or REASONS[reason].policy != PERMANENT or reason in retry


def read_entries(folder: Path) -> Iterator[dict[str, Any]]:
    """The ledger of a dataset, entry by entry in the order of the keys; none where there is no ledger.

    Raises:
        FormatError: a line that is no entry; names it.
    """
    for entry, _ in _read_lines(folder):
        yield entry


def read_ledger(folder: Path) -> dict[str, dict[str, Any]]:
    """The ledger by key, whole: a kilobyte of memory an entry. Raises `FormatError` as `read_entries` does."""
    return {entry["key"]: entry for entry in read_entries(folder)}


def read_reasons(folder: Path) -> dict[str, str | None]:
    """Why each recorded clip or row failed, None for those that came out well. Raises as `read_entries` does."""
    return {entry["key"]: _interned(entry["reason"]) for entry in read_entries(folder)}


def _interned(reason: str | None) -> str | None:
    return None if reason is None else sys.intern(reason)


def _read_lines(folder: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Each entry, and its line: what a change leaves alone is kept as bytes, a quarter of the memory."""
    path = folder / LEDGER
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                yield _read_entry(line, f"{path}:{number}"), line
    except FileNotFoundError:
        return


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
    news = {
        row.place: _line(_entry(row.place, reason=row.reason, message=row.message, list_name=row.list_name))
        for row in listing.rejected
    }
    names, lines, before = set(listing.names), dict[str, bytes](), dict[str, bytes]()
    for entry, line in _read_lines(folder):
        (before if entry["list"] in names else lines)[entry["key"]] = line
    if before != news or not (folder / LEDGER).exists():
        _write(folder, lines | news)


def record_outcomes(folder: Path, outcomes: Iterable[Outcome]) -> None:
    """Put what became of a run's clips into the ledger."""
    _record(folder, map(_outcome_entry, outcomes))


def note_outcome(folder: Path, outcome: Outcome) -> None:
    """Keep what became of a clip until the run's end, when the ledger gets it; or the next run's, after a crash."""
    write_file(folder / NOTES / f"{outcome.clip.key}.json", _line(_outcome_entry(outcome)))


def noted_outcome(folder: Path, clip: Clip) -> Outcome | None:
    """What was noted of this clip in the run that is under way."""
    path = folder / NOTES / f"{clip.key}.json"
    try:
        entry = _read_entry(path.read_bytes(), str(path))
    except FileNotFoundError:
        return None
    fields = (entry[name] for name in ("reason", "message", "seconds", "stored", "versions"))
    return Outcome(clip, *fields)


def adopt_notes(folder: Path) -> None:
    """Put the failures that a killed run noted into the ledger. What came out well is recorded when it is published."""
    notes = [folder / NOTES / name for name in names_in(folder / NOTES) if name.endswith(".json")]
    if notes:
        with ThreadPoolExecutor(READERS) as pool:
            found = list(pool.map(lambda note: _read_entry(note.read_bytes(), str(note)), notes))
        _record(folder, [entry for entry in found if entry["reason"]])
    forget_notes(folder)


def forget_notes(folder: Path) -> None:
    """Remove the notes, once they stand in the ledger."""
    remove_folder(folder / NOTES)


def record_withdrawn(folder: Path, keys: Iterable[str]) -> None:
    """Note that clips are to be taken down; how they came to be there is forgotten with them."""
    _update(folder, {key: _entry(key, reason=WITHDRAWN, message=UNDER_WAY, tried=_now()) for key in keys})


def being_withdrawn(folder: Path) -> set[str]:
    """Clips whose takedown is not known to be finished."""
    waiting = WITHDRAWN, UNDER_WAY
    return {entry["key"] for entry in read_entries(folder) if (entry["reason"], entry["message"]) == waiting}


def record_withdrawal_finished(folder: Path, keys: Iterable[str]) -> None:
    """Note that nothing is left of these clips but their keys."""
    entries = read_ledger(folder)
    _update(folder, {key: {**entries[key], "message": ""} for key in keys})


def _record(folder: Path, news: Iterable[dict[str, Any]]) -> None:
    """Put entries in place of the clips' earlier ones, with an attempt more; what was withdrawn stays so, for good."""
    lines, told = dict[str, bytes](), dict[str, tuple[str | None, int]]()
    for entry, line in _read_lines(folder):
        lines[entry["key"]] = line
        told[entry["key"]] = _interned(entry["reason"]), entry["attempts"]
    for entry in news:
        reason, attempts = told.get(entry["key"], (None, 0))
        if reason != WITHDRAWN:
            lines[entry["key"]] = _line({**entry, "attempts": attempts + 1})
    _write(folder, lines)


def _update(folder: Path, news: dict[str, dict[str, Any]]) -> None:
    lines = {entry["key"]: line for entry, line in _read_lines(folder)}
    _write(folder, lines | {key: _line(entry) for key, entry in news.items()})


def _outcome_entry(outcome: Outcome) -> dict[str, Any]:
    return _entry(
        outcome.clip.key,
        file=_file(outcome.clip),
        label=outcome.clip.label,
        split=outcome.clip.split,
        memberships=outcome.clip.memberships,
        reason=outcome.reason,
        message=outcome.message,
        seconds={stage: round(value, 3) for stage, value in outcome.seconds.items()},
        stored=outcome.stored,
        versions=outcome.versions,
        tried=_now(),
    )


def _file(clip: Clip) -> dict[str, Any] | None:
    """Where a clip of one's own comes from, which its key does not say."""
    if clip.origin != "file":
        return None
    return {"path": clip.video, "start_seconds": clip.start_seconds, "end_seconds": clip.end_seconds}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def totals(entries: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Count a ledger: `listed` = `ok` + the sum of `failed`, which counts by reason."""
    reasons = Counter(entry["reason"] for entry in entries)
    ok = reasons.pop(None, 0)
    return {"listed": ok + reasons.total(), "ok": ok, "failed": dict(sorted(reasons.items()))}


def _entry(
    key: str,
    *,
    file: dict[str, Any] | None = None,
    label: str | None = None,
    split: str | None = None,
    memberships: Sequence[str] | None = None,
    reason: str | None,
    message: str,
    seconds: dict[str, float] | None = None,
    stored: dict[str, int] | None = None,
    versions: dict[str, str] | None = None,
    list_name: str | None = None,
    tried: str = "",
) -> dict[str, Any]:
    if reason is not None and reason not in REASONS:
        raise ValueError(f"reason {reason!r} is not in the ledger's list")
    return {
        "key": key,
        "list": list_name,  # of rows that became no clip
        "file": file,
        "label": label,
        "split": split,
        # None where they are not known: of rows that became no clip, and after a takedown.
        "memberships": None if memberships is None else list(memberships),
        "reason": reason,
        "message": message,
        "attempts": 0,
        "tried": tried,  # when, in UTC
        "seconds": seconds or {},
        "stored": stored or {},
        "versions": versions or {},
    }


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, ensure_ascii=False, sort_keys=True).encode() + b"\n"


def _write(folder: Path, lines: dict[str, bytes]) -> None:
    with complete_file(folder / LEDGER) as file:
        file.writelines(lines[key] for key in sorted(lines))
