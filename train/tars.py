"""Tars that are named one by one: what a snapshot would say of their samples, found once and kept.

An index beside a tar, where there is one, tells where its samples lie, so that the tar need not be read as a whole.
Class list, split and flow stand in each sample's metadata only. All of it is kept in one file, in the user's cache
folder, under a name made of the tar's place, size and version: a tar that is replaced is indexed anew.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from glob import glob
from pathlib import Path
from typing import Any, BinaryIO, cast

import braceexpand
import numpy as np

from manifests.clip import membership_mask
from manifests.index import (
    INDEX_SUFFIX,
    INDEXES_AT_A_TIME,
    check_member,
    check_record,
    index_tar,
    member_ranges,
    read_members,
    read_metadata,
    read_records,
    require_inside,
    write_records,
)
from manifests.sample import METADATA, FormatError, flow_meaning
from train import remote
from train.cache import Cache, ShardFile, claimed_file, name_claimed

KEPT_VERSION = 1
TARS_AT_A_TIME = 4
SAMPLES_AT_A_TIME = 32
TRIES = 2  # of a tar that seems to be damaged, which the net may have done
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class IndexedTar:
    """A tar, its records, and of each sample the number of its split and of its flow, which is −1 where it has none."""

    shard: ShardFile
    records: np.ndarray
    classes: tuple[tuple[str, str], ...]  # name and SHA-256 of each class list
    splits: tuple[str | None, ...]
    split_of: np.ndarray
    flows: tuple[dict[str, Any], ...]  # each a `flow_meaning`
    flow_of: np.ndarray


def indexed_tars(names: str, cache: Cache | None) -> list[IndexedTar]:
    """The tars that a name with braces and wildcards stands for, in the order of their names.

    Raises:
        FormatError: none there, or one that is damaged or not of our samples.
        ValueError: a cache that is too small.
        OSError: one that cannot be reached.
    """
    try:
        expanded = list(braceexpand.braceexpand(names))
    except ValueError as error:  # unbalanced braces
        raise FormatError(f"{names}: {error}") from error
    places = sorted({place for name in expanded for place in _places(name)})
    with ThreadPoolExecutor(INDEXES_AT_A_TIME) as pool:
        shards = list(pool.map(_shard_at, places))
    if cache is not None:
        cache.require_room(shards)
    with ThreadPoolExecutor(TARS_AT_A_TIME) as pool:
        return list(pool.map(partial(_indexed, cache=cache), shards))


def _places(name: str) -> list[str]:
    if remote.is_remote(name):
        return remote.names_like(name)
    return glob(name) or [name]  # noqa: PTH207 — a user's pattern may be absolute, which Path.glob refuses


def _indexed(shard: ShardFile, cache: Cache | None) -> IndexedTar:
    words = [shard.place if shard.is_remote else str(Path(shard.place).resolve()), shard.bytes, shard.version]
    name = hashlib.sha256(json.dumps(words).encode()).hexdigest()[:32]
    folder = _folder(cache)
    if folder is None:
        _log.warning("%s: no cache folder can be written, so the index of this tar is not kept", shard.name)
        return _found(shard, cache)
    kept = folder / f"{name}.index"
    try:
        return _read_kept(kept.read_bytes(), shard)
    except (FileNotFoundError, FormatError):
        kept.unlink(missing_ok=True)
    with claimed_file(kept) as file:
        if file is None:
            return _read_kept(kept.read_bytes(), shard)
        found = _found(shard, cache)
        file.write(_kept(found))
        name_claimed(file, kept)
    return found


def _shard_at(place: str) -> ShardFile:
    if remote.is_remote(place):
        try:
            told = remote.find(place)
        except FileNotFoundError as error:
            raise FormatError(f"{error}: neither a dataset nor a tar file that is there") from error
        return ShardFile(place, told.size, version=told.version)
    path = Path(place)
    if not path.is_file():
        raise FormatError(f"{place}: neither a dataset's folder nor a tar file that is there")
    status = path.stat()
    return ShardFile(place, status.st_size, version=str(status.st_mtime_ns))


def _folder(cache: Cache | None) -> Path | None:
    """Where indexes are kept; None where there is no such place."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # The specification of that variable: what is not absolute is to be ignored.
        caches = Path(home) if Path(home).is_absolute() else Path.home() / ".cache"
        folder = (caches / "quo-vadis-rebuilt" if cache is None else cache.folder) / "indexes"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        return None
    return folder if os.access(folder, os.W_OK) else None


def _found(shard: ShardFile, cache: Cache | None) -> IndexedTar:
    """Index a tar by the index beside it or, where that is missing or does not fit, by reading it from start to end."""
    if shard.bytes == 0:
        raise FormatError(f"{shard.name}: an empty file, not a tar")
    beside = _index_beside(shard)
    if beside is not None:
        try:
            records = read_records(beside, f"{shard.name}: the index beside it")
            require_inside(records, shard.bytes, f"{shard.name}: the index beside it")
            return _described(shard, records, _metadata_reader(shard))
        except FormatError as error:
            _log.warning("%s: the index beside it does not fit, so the tar is read: %s", shard.name, error)
    if not shard.is_remote:
        with Path(shard.place).open("rb") as file:
            return _read_through(shard, file)
    for _ in range(TRIES - 1):
        try:
            return _downloaded(shard, cache)
        except FormatError:
            if cache is not None:
                cache.discard(shard)
    return _downloaded(shard, cache)


def _index_beside(shard: ShardFile) -> bytes | None:
    place, question, query = shard.place.partition("?") if shard.is_remote else (shard.place, "", "")
    beside = place.removesuffix(".tar") + INDEX_SUFFIX
    try:
        if shard.is_remote:
            return remote.read_whole(beside + question + query, bytes)
        return Path(beside).read_bytes()
    except (FileNotFoundError, PermissionError):  # a signature is of one name only
        return None


def _downloaded(shard: ShardFile, cache: Cache | None) -> IndexedTar:
    with ExitStack() as stack:
        path = cache.fetch(shard) if cache is not None else None
        if path is not None:
            return _read_through(shard, stack.enter_context(path.open("rb")))
        file = stack.enter_context(tempfile.TemporaryFile(buffering=0))
        remote.download(shard.place, shard.bytes, file.fileno())
        return _read_through(shard, cast(BinaryIO, file))


def _read_through(shard: ShardFile, file: BinaryIO) -> IndexedTar:
    records = index_tar(file, shard.name)
    return _described(
        shard, records, lambda some: [read_members(file, record, (METADATA,))[METADATA] for record in some]
    )


Reader = Callable[[np.ndarray], list[bytes]]  # the metadata of some records


def _metadata_reader(shard: ShardFile) -> Reader:
    def from_disk(records: np.ndarray) -> list[bytes]:
        with Path(shard.place).open("rb") as file:
            return [read_members(file, record, (METADATA,)).get(METADATA, b"") for record in records]

    def from_afar(records: np.ndarray) -> list[bytes]:
        def check(contents: list[bytes]) -> list[bytes]:
            for record, content in zip(records, contents, strict=True):
                check_member(record, METADATA, content)
            return contents

        ranges = [member_ranges(record, (METADATA,)).get(METADATA, (0, 0)) for record in records]
        return remote.read_ranges(shard.place, ranges, check)

    return from_afar if shard.is_remote else from_disk


def _described(shard: ShardFile, records: np.ndarray, read: Reader) -> IndexedTar:
    """What the metadata of each sample says, seen to be that of its record."""
    classes: dict[tuple[str, str], None] = {}
    splits: dict[str | None, int] = {}
    flows: list[dict[str, Any]] = []
    split_of, flow_of = [], []
    if (records["json_length"] == 0).any():
        raise FormatError(f"{shard.name}: an index of samples without metadata")
    for start in range(0, len(records), SAMPLES_AT_A_TIME):
        some = records[start : start + SAMPLES_AT_A_TIME]
        for record, content in zip(some, read(some), strict=True):
            name = f"{shard.name}: sample {record['key'].decode()}"
            metadata = read_metadata(content, name)
            check_record(record, metadata, name)
            _check_numbers(record, metadata, name)
            classes[metadata["classes"]["name"], metadata["classes"]["sha256"]] = None
            split_of.append(splits.setdefault(metadata["split"], len(splits)))
            flow = flow_meaning(metadata["flow"])
            if flow is not None and flow not in flows:
                flows.append(flow)
            flow_of.append(-1 if flow is None else flows.index(flow))
    numbers = np.array(split_of, np.int32), np.array(flow_of, np.int32)
    return IndexedTar(shard, records, tuple(classes), tuple(splits), numbers[0], tuple(flows), numbers[1])


def _check_numbers(record: np.void, metadata: dict[str, Any], name: str) -> None:
    flow_frames = metadata["flow"]["frames"] if metadata["flow"] else 0
    said = metadata["rgb"]["frames"], flow_frames, membership_mask(metadata["memberships"])
    found = tuple(int(record[field]) for field in ("rgb_frames", "flow_frames", "memberships"))
    if said != found:
        raise FormatError(f"{name}: frames and memberships {found} in the index, {said} in its metadata")


def _kept(tar: IndexedTar) -> bytes:
    """A line of JSON, then the records as they stand in an index."""
    value = {
        "version": KEPT_VERSION,
        "classes": tar.classes,
        "splits": tar.splits,
        "split_of": tar.split_of.tolist(),
        "flows": tar.flows,
        "flow_of": tar.flow_of.tolist(),
    }
    return json.dumps(value).encode() + b"\n" + write_records(tar.records)


def _read_kept(content: bytes, shard: ShardFile) -> IndexedTar:
    head, _, rest = content.partition(b"\n")
    try:
        value = json.loads(head)
        if value["version"] != KEPT_VERSION:
            raise ValueError(f"version {value['version']!r}")
        records = read_records(rest, shard.name)
        split_of, flow_of = np.array(value["split_of"], np.int32), np.array(value["flow_of"], np.int32)
        if not len(records) == len(split_of) == len(flow_of):
            raise ValueError("as many splits and flows as samples are wanted")
        classes = tuple((name, sha256) for name, sha256 in value["classes"])
        return IndexedTar(shard, records, classes, tuple(value["splits"]), split_of, tuple(value["flows"]), flow_of)
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{shard.name}: its kept index is none: {error}") from error
