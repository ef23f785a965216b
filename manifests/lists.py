"""Strict readers of clip lists: the official CSV files of Kinetics, CSV files of one's own, folders of classes.

A row that cannot be read is named with its file, its line and the reason; the rows around it go on.
"""

import csv
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from manifests.classes import ClassList, published_with
from manifests.clip import Clip, file_clip, printable, youtube_clip

KINETICS_COLUMNS = {"youtube_id", "time_start", "time_end"}
KINETICS_OPTIONAL = {"label", "split", "is_cc"}
OWN_COLUMNS = {"path", "label"}
OWN_OPTIONAL = {"start", "end", "split"}
VIDEO_SUFFIXES = frozenset(
    f".{ending}"
    for ending in (
        *("3gp", "asf", "avi", "flv", "gif", "m2ts", "m4v", "mkv", "mov", "mp4"),
        *("mpeg", "mpg", "mts", "ogv", "ts", "webm", "wmv"),
    )
)
OWN_CLASSES = "own"  # name of a class list that was made of a list's own labels
SPLIT_NAMES = {"validate": "val", "validation": "val", "valid": "val"}


class ListError(ValueError):
    """A list that cannot be read at all: missing, not text, or with columns that belong to no known format."""


@dataclass(frozen=True)
class Rejected:
    """A row of a list that became no clip. `place` is `file name:line`; `reason` one of the ledger's reasons."""

    list_name: str
    place: str
    reason: str
    message: str


@dataclass
class Listing:
    """What a set of lists holds: each clip once, and every row that became none. `rows` = clips + rejected."""

    clips: list[Clip] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)  # a clip's key: where it stands

    @property
    def rows(self) -> int:
        """Number of rows read."""
        return len(self.clips) + len(self.rejected)

    @property
    def labels(self) -> set[str]:
        """The distinct labels of the clips."""
        return {clip.label for clip in self.clips if clip.label is not None}


NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
ROW_SHOWN = 200  # characters of a bad row in its message

Row = tuple[str, Clip | Rejected]


def read_lists(lists: Iterable[Path], folder: Path | None = None) -> Listing:
    """Read clip lists of any known format into one listing.

    Args:
        lists: CSV files and folders `class/video.mp4`. A format is known by its columns, never by the file's name.
        folder: where relative paths of lists of one's own start; by default the folder that the list lies in.

    Raises:
        ListError: a list that cannot be read at all, or two lists of the same file name, whose rows could not be told
            apart in the ledger.
    """
    listing = Listing()
    first: dict[str, Clip] = {}
    for path in lists:
        name = path.resolve().name
        if name in listing.names:
            raise ListError(f"two lists are called {name!r}: rename one, rows are reported by the list's name and line")
        listing.names.append(name)
        rows = _read_folder(path, folder) if path.is_dir() else _read_csv(path, folder)
        for place, row in rows:
            if isinstance(row, Rejected):
                listing.rejected.append(row)
            elif row.key in first:
                listing.rejected.append(_repeated(name, place, row, listing.places[row.key], first[row.key]))
            else:
                first[row.key] = row
                listing.places[row.key] = place
                listing.clips.append(row)
    return listing


def reject_unknown_labels(listing: Listing, classes: ClassList) -> Listing:
    """Move clips whose label is not in `classes` to the rejected rows, with the list that would know the label."""
    known = Listing(rejected=list(listing.rejected), names=listing.names, places=listing.places)
    for clip in listing.clips:
        if clip.label is None or clip.label in classes.index:
            known.clips.append(clip)
            continue
        others = published_with([clip.label])
        hint = f"; it is one of {' and '.join(others)}: pass --classes" if others else ""
        if classes.name == OWN_CLASSES:
            hint = "; a dataset's class list is fixed by its first run: start another, or one with --classes FILE"
        message = f"label {clip.label!r} is not among the {len(classes.labels)} classes of {classes.name}{hint}"
        place = listing.places[clip.key]
        known.rejected.append(Rejected(place.split(":", 1)[0], place, "unknown-label", message))
    return known


def _repeated(name: str, place: str, clip: Clip, first_place: str, first: Clip) -> Rejected:
    message = f"{clip.key} stands already at {first_place}"
    if clip.folder != first.folder:
        message += f", there below {first.folder}, here below {clip.folder}: put both folders below one --source"
    if (clip.label, clip.split) != (first.label, first.split):
        message += (
            f", there with label {first.label!r} and split {first.split!r}, here with {clip.label!r} and {clip.split!r}"
        )
    return Rejected(name, place, "repeated-row", message)


def _read_csv(path: Path, folder: Path | None) -> Iterator[Row]:
    name = path.resolve().name
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            columns = [column.strip() for column in _values(next(file, ""))]
            if not any(columns):
                raise ListError(f"{path}: no header, a list starts with a row of column names")
            parse = _parser_of(path, columns, str(folder or path.resolve().parent))
            # A row is a line: a stray quote spoils its own row, and not all that follow.
            for number, line in enumerate(file, start=2):
                place = f"{name}:{number}"
                try:
                    if line.strip():
                        yield place, parse(_row(columns, _values(line)))
                except (ValueError, csv.Error) as error:
                    yield place, Rejected(name, place, "bad-row", f"{error} in {line.strip()[:ROW_SHOWN]!r}")
    except OSError as error:
        raise ListError(f"{path}: cannot be read as a list: {error}") from error
    except csv.Error as error:
        raise ListError(f"{path}: the header is no row of column names: {error}") from error


def _values(line: str) -> list[str]:
    return next(csv.reader([line], strict=True), [])


def _row(columns: list[str], values: list[str]) -> dict[str, str]:
    if len(values) != len(columns):
        raise ValueError(f"{len(values)} values in a row of {len(columns)} columns ({','.join(columns)})")
    return dict(zip(columns, (value.strip() for value in values), strict=True))


def _parser_of(path: Path, columns: list[str], folder: str) -> Callable[[dict[str, str]], Clip]:
    given = set(columns)
    if len(given) == len(columns):
        if given >= KINETICS_COLUMNS and given <= KINETICS_COLUMNS | KINETICS_OPTIONAL:
            return _kinetics_row
        if given >= OWN_COLUMNS and given <= OWN_COLUMNS | OWN_OPTIONAL:
            return lambda row: _own_row(row, folder)
    raise ListError(
        f"{path}: the columns {','.join(columns)!r} belong to no known list; known are "
        "[label,]youtube_id,time_start,time_end[,split][,is_cc] (Kinetics) and path,label[,start,end,split]"
    )


def _kinetics_row(row: dict[str, str]) -> Clip:
    start, end = _seconds(row["time_start"], "time_start"), _seconds(row["time_end"], "time_end")
    label, split = row.get("label") or None, _split(row)
    if label is None and "label" in row and split not in (None, "test"):
        raise ValueError(f"no label in a row of split {split!r}")
    return youtube_clip(row["youtube_id"], start, end, label, split)


def _own_row(row: dict[str, str], folder: str) -> Clip:
    start = _seconds(row["start"], "start") if row.get("start") else 0.0
    end = _seconds(row["end"], "end") if row.get("end") else None
    path = PurePosixPath(row["path"])
    if path.is_absolute():
        if not path.is_relative_to(folder):
            raise ValueError(f"path {str(path)!r} lies outside {folder}: pass the folder that holds it as --source")
        path = path.relative_to(folder)
    return file_clip(str(path), row["label"] or None, start, end, _split(row), folder)


def _split(row: dict[str, str]) -> str | None:
    split = row.get("split") or None
    return SPLIT_NAMES.get(split, split) if split else None


def _seconds(text: str, column: str) -> float:
    if not NUMBER.fullmatch(text):
        raise ValueError(f"{column} {text!r} is no number of seconds")
    return float(text)


def _read_folder(path: Path, folder: Path | None) -> Iterator[Row]:
    """One clip a file `class/video.mp4`, whole, in the order of the names; hidden files are passed over."""
    root = path.resolve()
    base = folder.resolve() if folder and root.is_relative_to(folder.resolve()) else root
    for entry in _visible(root):
        for file in _visible(entry) if entry.is_dir() else [entry]:
            place = f"{root.name}:{printable(file.relative_to(root).as_posix())}"
            try:
                yield place, _file_in_class(file, root, base)
            except ValueError as error:
                yield place, Rejected(root.name, place, "bad-row", str(error))


def _file_in_class(file: Path, root: Path, base: Path) -> Clip:
    if file.parent == root or file.is_dir():
        raise ValueError("not at class/video: a file lies in the folder of its class")
    if file.suffix.lower() not in VIDEO_SUFFIXES:
        raise ValueError(f"{file.suffix!r} is not the ending of a video file")
    return file_clip(file.relative_to(base).as_posix(), file.parent.name, folder=str(base))


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
