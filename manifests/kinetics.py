"""Kinetics' official lists: a row of a CSV file, and JSON files `{youtube_id: {annotations, subset, …}}`."""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from manifests.clip import Clip, youtube_clip

COLUMNS = {"youtube_id", "time_start", "time_end"}
OPTIONAL_COLUMNS = {"label", "split", "is_cc"}
SPLIT_NAMES = {"validate": "val", "validation": "val", "valid": "val"}
NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
NOT_IN_AN_ID = re.compile(r"[^A-Za-z0-9_-]")
SHOWN = 40  # characters of a bad value in its message
SPACE = re.compile(r"[ \t\r\n]*")


def clip_of_row(row: Mapping[str, str]) -> Clip:
    """The clip of a row of a CSV file, by its columns.

    Raises:
        ValueError: the row is none.
    """
    start, end = seconds(row["time_start"], "time_start"), seconds(row["time_end"], "time_end")
    label, split = row.get("label") or None, split_name(row.get("split"))
    if label is None and "label" in row and split not in (None, "test"):
        raise ValueError(f"no label in a row of split {split!r}")
    return youtube_clip(row["youtube_id"], start, end, label and sys.intern(label), split)


@lru_cache(maxsize=4096)  # lists repeat their times, and clips then share them
def seconds(text: str, column: str) -> float:
    """A number of seconds; `ValueError` for what is none."""
    if not NUMBER.fullmatch(text):
        raise ValueError(f"{column} {text[:SHOWN]!r} is no number of seconds")
    return float(text)


def split_name(split: str | None) -> str | None:
    """The one name of a split that lists call differently; None for an empty one."""
    return SPLIT_NAMES.get(split, split) if split else None


def looks_like_json(path: Path) -> bool:
    """Whether a list begins as a JSON object does, which the header of no CSV file does."""
    with path.open("rb") as file:
        return file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")


def read_json_list(path: Path) -> Iterator[tuple[str, Clip | ValueError]]:
    """Each entry of a JSON list as its place, `file name:youtube_id`, and the clip or why it is none.

    An id that stands several times is as many clips. The entries are decoded one by one: the objects of a whole list
    would take ten times its size.

    Raises:
        ValueError: the file is no JSON object; names line and column. What was yielded before stood before that.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    name = path.resolve().name
    seen: Counter[str] = Counter()
    try:
        for youtube_id, entry in _members(text):
            place = f"{name}:{NOT_IN_AN_ID.sub('?', youtube_id[:SHOWN])}"
            seen[place] += 1
            if seen[place] > 1:
                place += f":{seen[place]}"
            try:
                yield place, _clip_of_entry(youtube_id, entry)
            except ValueError as error:
                yield place, error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: JSON that is nested too deeply") from error


def _members(text: str) -> Iterator[tuple[str, Any]]:
    """Keys and values of a JSON object, one by one."""
    # Numbers of any length become floats: Python's ints of more than 4300 digits would raise.
    decoder = json.JSONDecoder(object_pairs_hook=_object, parse_int=float)

    def after(place: int, expected: str) -> int:
        place = _after_space(text, place)
        if not text.startswith(tuple(expected), place):
            raise json.JSONDecodeError(f"expected {' or '.join(expected)}", text, place)
        return place + 1

    place = after(0, "{")
    if text.startswith("}", _after_space(text, place)):
        place = after(place, "}")
    else:
        while text[place - 1] != "}":
            key, place = decoder.raw_decode(text, after(place, '"') - 1)
            value, place = decoder.raw_decode(text, _after_space(text, after(place, ":")))
            yield key, value
            place = after(place, ",}")
    place = _after_space(text, place)
    if place != len(text):
        raise json.JSONDecodeError("something after the object", text, place)


def _after_space(text: str, place: int) -> int:
    match = SPACE.match(text, place)
    assert match is not None  # it matches nothing, too
    return match.end()


class _Repeated(str):
    """In place of an object: a key that stands in it twice, of which `json` would silently keep the last."""


def _object(pairs: list[tuple[str, Any]]) -> Any:
    values = dict(pairs)
    if len(values) == len(pairs):
        return values
    return _Repeated(Counter(key for key, _ in pairs).most_common(1)[0][0])


def _clip_of_entry(youtube_id: str, entry: Any) -> Clip:
    annotations = _value(_checked(entry, "the entry"), "annotations")
    segment = _value(_checked(annotations, "annotations"), "segment")
    if not (isinstance(segment, list) and len(segment) == 2 and all(isinstance(time, float) for time in segment)):
        raise ValueError(f"segment {_shown(segment)} is not [start, end] in seconds")
    label, subset = annotations.get("label"), entry.get("subset")
    for name, text in (("label", label), ("subset", subset)):
        if not (text is None or (isinstance(text, str) and not isinstance(text, _Repeated))):
            raise ValueError(f"{name} {_shown(text)} is no text")
    split = split_name(subset)
    if not label and split not in (None, "test"):
        raise ValueError(f"no label in an entry of subset {split!r}")
    return youtube_clip(youtube_id, segment[0], segment[1], sys.intern(label) if label else None, split)


def _checked(value: Any, name: str) -> dict[str, Any]:
    if isinstance(value, _Repeated):
        raise ValueError(f"{name} has the key {value[:SHOWN]!r} twice")
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {_shown(value)}, not an object")
    return value


def _value(values: dict[str, Any], key: str) -> Any:
    if key not in values:
        raise ValueError(f"no {key!r}")
    return values[key]


def _shown(value: Any) -> str:
    text = repr(value) if not isinstance(value, dict | list) else f"of {len(value)} values"
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"
