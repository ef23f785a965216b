"""Clips: a stretch of a video, its label and its split, and the names by which it is known everywhere."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath

YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}")
SPLIT = re.compile(r"[A-Za-z0-9_-]{1,32}")
MAXIMUM_SECONDS = 999_999
MAXIMUM_PATH, MAXIMUM_NAME_BYTES = 1000, 255  # what file systems take; a longer one is an error of the machine's there
NO_SPLIT = "all"
UNLABELLED = "-unlabelled"
# The overlapping splits of UCF-101 and HMDB-51, by the number of their bit in a shard's index.
MEMBERSHIPS = ("train1", "test1", "train2", "test2", "train3", "test3")


@dataclass(frozen=True, slots=True)
class Clip:
    """One listed stretch [start_seconds, end_seconds) of one video.

    `video` is a YouTube id, or the path of a video file relative to `folder` (`/` as separator). `end_seconds` None
    means the end of the file. `label` and `split` are None where the list has none. `folder` tells where a file of
    one's own is looked for on this machine; it is no part of the clip's identity. `memberships` are those of
    `MEMBERSHIPS` that the clip belongs to, in their order, where splits overlap and no one of them is its split.
    """

    key: str
    origin: str  # "youtube" or "file"
    video: str
    start_seconds: float
    end_seconds: float | None
    label: str | None
    split: str | None
    folder: str = ""
    memberships: tuple[str, ...] = ()

    @property
    def group(self) -> str:
        """Name of the group of shards that the clip goes to: its split; unlabelled clips stay among themselves."""
        return (self.split or NO_SPLIT) + ("" if self.label is not None else UNLABELLED)


def youtube_clip(
    youtube_id: str, start_seconds: float, end_seconds: float, label: str | None, split: str | None
) -> Clip:
    """A clip of Kinetics; its key is the name that CVDF's mirror gives the file, `{id}_{start:06d}_{end:06d}`.

    Raises:
        ValueError: a malformed id, times that are no whole seconds or out of order, a malformed label or split.
    """
    if not YOUTUBE_ID.fullmatch(youtube_id):
        raise ValueError(f"malformed id {youtube_id[:40]!r}: a YouTube id is 11 characters of A-Z a-z 0-9 _ -")
    check_times(start_seconds, end_seconds)
    start, end = int(start_seconds), int(end_seconds)
    if (start, end) != (start_seconds, end_seconds):
        odd = f"start {start_seconds}" if start != start_seconds else f"end {end_seconds}"
        raise ValueError(f"{odd} is not a whole second, as the times of Kinetics are")
    _check_split(split)
    _check_label(label)
    key = f"{youtube_id}_{start:06d}_{end:06d}"
    return Clip(key, "youtube", youtube_id, float(start_seconds), float(end_seconds), label, split)


def file_clip(
    path: str,
    label: str | None,
    start_seconds: float = 0.0,
    end_seconds: float | None = None,
    split: str | None = None,
    folder: str = "",
    memberships: Sequence[str] = (),
) -> Clip:
    """A clip of a video file of one's own; its key is a slug of the file's name and a hash of path and times.

    Raises:
        ValueError: a path that is absolute, leaves its folder or cannot be one; times out of order; a malformed label
            or split, memberships that are not among `MEMBERSHIPS` or in another order.
    """
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or not path.isprintable():
        raise ValueError(f"path {path!r} must name a file inside the list's folder: no leading '/', no '..'")
    if len(path) > MAXIMUM_PATH or any(len(part.encode()) > MAXIMUM_NAME_BYTES for part in parts):
        raise ValueError(
            f"path {path[:MAXIMUM_NAME_BYTES]!r} is too long: up to {MAXIMUM_PATH} characters, "
            f"and {MAXIMUM_NAME_BYTES} bytes a name"
        )
    check_times(start_seconds, end_seconds)
    _check_split(split)
    _check_label(label)
    membership_mask(memberships)
    video = str(PurePosixPath(path))
    slug = re.sub(r"[^A-Za-z0-9_-]+", "-", PurePosixPath(video).stem).strip("-")[:48]
    identity = f"{video}\n{float(start_seconds)!r}\n{end_seconds and float(end_seconds)!r}"
    digest = hashlib.blake2b(identity.encode(), digest_size=6).hexdigest()
    key = f"{slug}_{digest}" if slug else digest
    return Clip(key, "file", video, float(start_seconds), end_seconds, label, split, folder, tuple(memberships))


def check_times(start_seconds: float, end_seconds: float | None) -> None:
    """Raise `ValueError` for times that are no numbers from 0 to `MAXIMUM_SECONDS`, or out of order."""
    for name, seconds in (("start", start_seconds), ("end", end_seconds)):
        if seconds is not None and not 0 <= seconds <= MAXIMUM_SECONDS:  # which no NaN is
            raise ValueError(f"{name} {seconds} is outside 0 to {MAXIMUM_SECONDS} seconds")
    if end_seconds is not None and start_seconds >= end_seconds:
        raise ValueError(f"start {start_seconds:g} is not before end {end_seconds:g}")


def membership_mask(memberships: Sequence[str]) -> int:
    """Bit mask of memberships: bit i is set for the i-th of `MEMBERSHIPS`.

    Raises:
        ValueError: one that is not among them, or another order than theirs.
    """
    if list(memberships) != [name for name in MEMBERSHIPS if name in memberships]:
        raise ValueError(f"memberships {str(list(memberships))[:200]}: some of {', '.join(MEMBERSHIPS)}, in this order")
    return sum(1 << MEMBERSHIPS.index(name) for name in memberships)


def memberships_of(mask: int) -> tuple[str, ...]:
    """The memberships that a bit mask says."""
    return tuple(name for bit, name in enumerate(MEMBERSHIPS) if mask >> bit & 1)


@lru_cache(maxsize=4096)  # lists repeat their labels and splits
def _check_label(label: str | None) -> None:
    if label is not None and not (label.strip() == label and label.isprintable() and 0 < len(label) <= 200):
        raise ValueError(f"label {label[:200]!r}: up to 200 printable characters")


def printable(text: str) -> str:
    """Text from a stranger as it may be shown on a terminal: what is not printable is escaped, line breaks stay."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


@lru_cache(maxsize=4096)
def _check_split(split: str | None) -> None:
    if split is not None and not SPLIT.fullmatch(split):
        raise ValueError(f"malformed split {split[:40]!r}: up to 32 characters of A-Z a-z 0-9 _ -")
    if split is not None and (split == NO_SPLIT or split.endswith(UNLABELLED)):
        raise ValueError(f"split {split!r}: that name is kept for clips without a split or a label")
