"""Strict readers of clip lists: Kinetics' official files, CSV files of one's own, folders of classes, benchmarks.

A row that cannot be read is named with its file, its line and the reason; the rows around it go on.
"""

import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from manifests import kinetics
from manifests.benchmarks import benchmark_in
from manifests.classes import ClassList, published_with
from manifests.clip import Clip, file_clip
from manifests.folders import read_folder
from manifests.kinetics import seconds, split_name

OWN_COLUMNS = {"path", "label"}
OWN_OPTIONAL = {"start", "end", "split"}
OWN_CLASSES = "own"  # name of a class list that was made of a list's own labels


class ListError(ValueError):
    """A list that cannot be read at all: missing, not text, or with columns that belong to no known format."""


@dataclass(frozen=True)
class Rejected:
    """A row of a list that became no clip.

    `place` is `file name:line`, in JSON `file name:youtube_id`, in folders `folder:path`; `reason` one of the ledger's
    reasons.
    """

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
    classes: list[ClassList] = field(default_factory=list)  # of the benchmarks among the lists

    @property
    def rows(self) -> int:
        """Number of rows read."""
        return len(self.clips) + len(self.rejected)

    @property
    def labels(self) -> set[str]:
        """The distinct labels of the clips."""
        return {clip.label for clip in self.clips if clip.label is not None}


ROW_SHOWN = 200  # characters of a bad row in its message

Row = tuple[str, Clip | ValueError]  # where it stands, and what it is or why it is none


def read_lists(lists: Iterable[Path], folder: Path | None = None) -> Listing:
    """Read clip lists of any known format into one listing.

    Args:
        lists: CSV and JSON files, folders `class/video.mp4`, folders of UCF-101 or HMDB-51. A format is known by its
            content, never by its name.
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
        for place, row in _read(path, folder, listing.classes):
            if isinstance(row, ValueError):
                listing.rejected.append(Rejected(name, place, "bad-row", str(row)))
            elif row.key in first:
                listing.rejected.append(_repeated(name, place, row, listing.places[row.key], first[row.key]))
            else:
                first[row.key] = row
                listing.places[row.key] = place
    listing.clips = list(first.values())
    return listing


def _read(path: Path, folder: Path | None, classes: list[ClassList]) -> Iterator[Row]:
    """The rows of a list of any format; adds to `classes` where it brings its own."""
    try:
        if path.is_dir():
            benchmark = benchmark_in(path, folder)
            if benchmark is not None:
                classes.append(benchmark.classes)
            yield from read_folder(path, folder) if benchmark is None else benchmark.rows()
        else:
            yield from kinetics.read_json_list(path) if kinetics.looks_like_json(path) else _read_csv(path, folder)
    except OSError as error:
        raise ListError(f"{path}: cannot be read as a list: {error}") from error
    except ListError:
        raise
    except ValueError as error:
        raise ListError(str(error)) from error


def reject_unknown_labels(listing: Listing, classes: ClassList) -> Listing:
    """Move clips whose label is not in `classes` to the rejected rows, with the list that would know the label."""
    known = Listing([], list(listing.rejected), listing.names, listing.places, listing.classes)
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
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        try:
            columns = [column.strip() for column in _values(next(file, ""))]
        except csv.Error as error:
            raise ListError(f"{path}: the header is no row of column names: {error}") from error
        if not any(columns):
            raise ListError(f"{path}: no header, a list starts with a row of column names")
        parse = _parser_of(path, columns, str(folder or path.resolve().parent))
        # A row is a line: a stray quote spoils its own row, and not all that follow.
        for number, line in enumerate(file, start=2):
            place = f"{name}:{number}"
            try:
                if not line.isspace():
                    yield place, parse(_row(columns, _values(line)))
            except (ValueError, csv.Error) as error:
                yield place, ValueError(f"{error} in {line.strip()[:ROW_SHOWN]!r}")


def _values(line: str) -> list[str]:
    if '"' not in line:  # as nearly all lines are, and `csv` would take several times as long
        return line.removesuffix("\n").split(",")
    return next(csv.reader([line], strict=True), [])


def _row(columns: list[str], values: list[str]) -> dict[str, str]:
    if len(values) != len(columns):
        raise ValueError(f"{len(values)} values in a row of {len(columns)} columns ({','.join(columns)})")
    return dict(zip(columns, map(str.strip, values), strict=True))


def _parser_of(path: Path, columns: list[str], folder: str) -> Callable[[dict[str, str]], Clip]:
    given = set(columns)
    if len(given) == len(columns):
        if given >= kinetics.COLUMNS and given <= kinetics.COLUMNS | kinetics.OPTIONAL_COLUMNS:
            return kinetics.clip_of_row
        if given >= OWN_COLUMNS and given <= OWN_COLUMNS | OWN_OPTIONAL:
            return lambda row: _own_row(row, folder)
    raise ListError(
        f"{path}: the columns {','.join(columns)[:ROW_SHOWN]!r} belong to no known list; known are "
        "[label,]youtube_id,time_start,time_end[,split][,is_cc] (Kinetics) and path,label[,start,end,split]"
    )


def _own_row(row: dict[str, str], folder: str) -> Clip:
    start = seconds(row["start"], "start") if row.get("start") else 0.0
    end = seconds(row["end"], "end") if row.get("end") else None
    path = PurePosixPath(row["path"])
    if path.is_absolute():
        if not path.is_relative_to(folder):
            raise ValueError(f"path {str(path)!r} lies outside {folder}: pass the folder that holds it as --source")
        path = path.relative_to(folder)
    return file_clip(str(path), row["label"] or None, start, end, split_name(row.get("split")), folder)
