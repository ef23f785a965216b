"""Samples of a dataset, found by what a user types and read by their offsets, here or from afar."""

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast
from urllib.parse import urlsplit

import numpy as np

from manifests.classes import PUBLISHED, ClassList, published_classes
from manifests.clip import MEMBERSHIPS, membership_mask, memberships_of
from manifests.index import (
    INDEXES_AT_A_TIME,
    MEMBERS,
    NO_CLASS,
    Shard,
    Snapshot,
    check_member,
    checked_index,
    member_ranges,
    read_index,
    read_members,
    read_snapshot,
    record_dtype,
)
from manifests.sample import METADATA, FormatError, differences, flow_meaning
from model import Stream
from train import remote
from train.cache import Cache, ShardFile
from train.tars import IndexedTar, indexed_tars

Inputs = Literal["rgb", "flow", "both"]  # what a network sees


class Sample(NamedTuple):
    """Where one sample lies."""

    key: str
    shard: ShardFile
    record: np.void  # `manifests.index.record_dtype`
    cache: Cache | None = None

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.shard.name}: sample {self.key}"

    def read(self, wanted: Sequence[str] = MEMBERS) -> dict[str, bytes]:
        """Those of the `wanted` members that the sample has, checked against the index.

        Raises:
            FormatError: the shard is truncated or holds other bytes, read again, too; the message names it.
            OSError: the shard is not there or cannot be reached in spite of all patience.
        """
        try:
            return self._read_remote(wanted) if self.shard.is_remote else self._read_local(wanted)
        except FormatError as error:
            raise FormatError(f"{self.shard.name}: {error}") from error

    def _read_local(self, wanted: Sequence[str]) -> dict[str, bytes]:
        path = Path(self.shard.place)
        try:
            return _members_in(path, self.record, wanted)
        except FormatError:
            return _members_in(path, self.record, wanted)  # a folder may be of another machine

    def _read_remote(self, wanted: Sequence[str]) -> dict[str, bytes]:
        cached = self._read_cached(wanted)
        if cached is not None:
            return cached
        ranges = member_ranges(self.record, wanted)

        def check(contents: list[bytes]) -> dict[str, bytes]:
            members = dict(zip(ranges, contents, strict=True))
            for member, content in members.items():
                check_member(self.record, member, content)
            return members

        members = remote.read_ranges(self.shard.place, list(ranges.values()), check)
        if self.cache is not None:
            self.cache.discard(self.shard)  # there is none, or a damaged one, since the bytes themselves are good
        return members

    def _read_cached(self, wanted: Sequence[str]) -> dict[str, bytes] | None:
        """Members from the node's copy of the shard; None where there is no room for one or it is damaged."""
        if self.cache is None:
            return None
        for _ in range(2):
            try:
                path = self.cache.fetch(self.shard)
                return None if path is None else _members_in(path, self.record, wanted)
            except FormatError:
                return None
            except FileNotFoundError:  # it was removed before it was opened, or is gone from where it was
                continue
        return None


def _members_in(path: Path, record: np.void, wanted: Sequence[str]) -> dict[str, bytes]:
    with path.open("rb") as file:
        return read_members(file, record, wanted)


@dataclass(frozen=True, eq=False)
class Samples:
    """The samples that a user's words name, in the order of their keys, and the class list that indices mean.

    A sample is a record, not an object: worker processes share the arrays, whose pages nobody writes to.

    Attributes:
        records: [N] of `manifests.index.record_dtype`, of the longest key.
        shard_of: [N] int32, the number of each sample's shard in `shards`.
        shards: the files that hold them, and perhaps more.
        classes: what class indices mean; None where it is not known.
        snapshot: name of the dataset's snapshot; None for tars.
        snapshot_sha256: of its `snapshot.json`; None for tars.
        dataset: path or URL of the dataset; None for tars.
        splits: that was asked for, else those of the samples, each once.
        flows: each `flow_meaning` there is, and whose it is.
        cache: where shards from afar are kept on this node.
        short_side: of the stored pictures, in pixels; None for tars, which do not say.
    """

    records: np.ndarray
    shard_of: np.ndarray
    shards: tuple[ShardFile, ...]
    classes: ClassList | None
    snapshot: str | None
    snapshot_sha256: str | None
    dataset: str | None
    splits: tuple[str | None, ...]
    flows: tuple[tuple[str, dict[str, Any]], ...]
    cache: Cache | None = None
    short_side: int | None = None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: int) -> Sample:
        record = self.records[number]
        return Sample(record["key"].decode("ascii"), self.shards[self.shard_of[number]], record, self.cache)

    def __iter__(self) -> Iterator[Sample]:
        return (self[number] for number in range(len(self)))

    def take(self, numbers: np.ndarray | Sequence[int]) -> "Samples":
        """Those of the given numbers, in that order, or those where a [N] array of bool is true."""
        chosen = np.asarray(numbers)
        if chosen.dtype != bool:
            chosen = chosen.astype(np.intp)
        return replace(self, records=self.records[chosen], shard_of=self.shard_of[chosen])

    def require_one_flow(self, others: "Samples | None" = None) -> None:
        """Raise `FormatError` where the flow of these samples, and of `others`, was made in different ways."""
        (_, first), *rest = (*self.flows, *(others.flows if others else ())) or (("", {}),)
        for name, flow in rest:
            if changed := differences(first, flow):
                raise FormatError(f"{name}: its flow was made in another way than that before it: {'; '.join(changed)}")


def streams_of(inputs: Inputs) -> tuple[Stream, ...]:
    """The streams that are meant."""
    return ("rgb", "flow") if inputs == "both" else (inputs,)


def trainable_samples(samples: Samples, streams: Sequence[Stream], option: str = "--split") -> Samples:
    """Those samples that have a label.

    Raises:
        FormatError: several splits at once, none with a label, a class list that is unknown, a sample without
            one of the `streams`, two samples of one key, or flow that was made in several ways.
    """
    first = samples[0].shard.name
    if len(samples.splits) > 1:
        there = ", ".join(sorted(split or "(none)" for split in samples.splits))
        raise FormatError(f"samples of several splits ({there}): choose one with {option}")
    if samples.classes is None:
        raise FormatError(
            f"{first}: no tar has a sample of some class, whose name is unknown so: name the dataset's folder"
        )
    if "flow" in streams:
        samples.require_one_flow()
    has_label = samples.records["class_index"] != NO_CLASS
    labelled = samples if has_label.all() else samples.take(has_label)
    if not len(labelled):
        raise FormatError(f"{first}: none of the {len(samples)} samples has a label")
    for stream in streams:
        lacking = np.flatnonzero(labelled.records[f"{stream}_frames"] == 0)
        if len(lacking):
            raise FormatError(f"{labelled[lacking[0]].name} has no {stream}: prepared with --flow none?")
    keys = labelled.records["key"]
    twice = np.flatnonzero(keys[1:] == keys[:-1])
    if len(twice):
        raise FormatError(f"{labelled[twice[0]].name} stands in {labelled[twice[0] + 1].shard.name}, too")
    classes = labelled.records["class_index"]
    wrong = np.flatnonzero((classes < 0) | (classes >= len(samples.classes.labels)))
    if len(wrong):
        raise FormatError(
            f"{labelled[wrong[0]].name} has class {classes[wrong[0]]}, "
            f"{samples.classes.name} has {len(samples.classes.labels)}"
        )
    return labelled


def open_samples(shards: str, split: str | None = None, cache: Cache | None = None) -> Samples:
    """Find samples.

    Args:
        shards: a dataset, `DIR` or `DIR@SNAPSHOT`, or names of tar files with braces and globs; a path or a URL of
            http://, https://, gs://, s3://. A URL whose last part ends in .tar or has braces or wildcards names tars.
        split: take only this split, `train1` or another of `manifests.clip.MEMBERSHIPS` where splits overlap.
        cache: keep whole shards of URLs there, and read them from there.

    Raises:
        FormatError: nothing there, a damaged index or shard, or no sample of that split.
        ValueError: a cache that is too small.
        OSError: a place that cannot be reached, or a cache that cannot be written.
    """
    folder, name = _folder_of(shards)
    return _of_tars(shards, split, cache) if folder is None else _of_dataset(folder, name, split, cache)


def at_snapshot(shards: str, snapshot: str) -> str:
    """A user's words, with a snapshot's name where they mean a dataset and name none."""
    folder, name = _folder_of(shards)
    return shards if folder is None or name is not None else f"{folder.rstrip('/')}@{snapshot}"


def _folder_of(shards: str) -> tuple[str | None, str | None]:
    """The dataset and the snapshot's name that a user's words mean; None where they mean tars."""
    folder, _, name = shards.rpartition("@")
    if not folder or "/" in name or urlsplit(folder).netloc != urlsplit(shards).netloc:  # of user@host, or further up
        folder, name = shards, ""
    if not remote.is_remote(shards):
        if Path(shards).is_dir():
            return shards, None
        return (folder, name or None) if Path(folder).is_dir() else (None, None)
    last = urlsplit(shards).path.rpartition("/")[2]
    if last.endswith(".tar") or any(character in last for character in "{*[") or urlsplit(shards).query:
        return None, None
    return folder.rstrip("/"), name or None


def _of_dataset(place: str, name: str | None, split: str | None, cache: Cache | None) -> Samples:
    afar = remote.is_remote(place)
    folder = cast(Path, remote.RemoteFolder(place)) if afar else Path(place)
    snapshot = _snapshot_of(folder, name, afar)
    bit = membership_mask([split]) if split in MEMBERSHIPS else 0
    chosen = [shard for shard in snapshot.shards if split is None or shard.split == split or bit]
    files: list[ShardFile] = []
    table = _Table()
    splits: list[str | None] = []
    for shard, found in zip(chosen, _indexes_of(folder, chosen, afar), strict=True):
        records = found
        if split is not None and shard.split != split:
            records = found[found["memberships"] & bit != 0]
        path = f"{place}/{shard.path}" if afar else str(folder / shard.path)
        files.append(ShardFile(path, shard.bytes, shard.sha256))
        table.add(records)
        splits += [split] if split is not None else _splits_of(shard, records)
    if not len(table):
        every = zip(snapshot.shards, _indexes_of(folder, snapshot.shards, afar), strict=True)
        there = sorted({name or "(none)" for shard, records in every for name in _splits_of(shard, records)})
        raise FormatError(f"{folder}: no sample of split {split!r}; there are {', '.join(there) or 'no samples'}")
    if cache is not None:
        cache.require_room(files)
    flow = flow_meaning(snapshot.specification.to_json()["flow"])
    flows = () if flow is None else ((str(folder), flow),)
    records, shard_of = table.in_order()
    named = snapshot.name, snapshot.sha256, place
    short_side = snapshot.specification.rgb.short_side
    return Samples(records, shard_of, tuple(files), snapshot.classes, *named, _unique(splits), flows, cache, short_side)


def _snapshot_of(folder: Path, name: str | None, afar: bool) -> Snapshot:
    def read() -> Snapshot | None:
        return read_snapshot(folder, name)

    snapshot = remote.patiently(str(folder), read, remote.OPENING_SECONDS) if afar else read()
    if snapshot is None:
        raise FormatError(f"{folder}: no dataset is published there (there is no index.json)")
    return snapshot


def _indexes_of(folder: Path, shards: Sequence[Shard], afar: bool) -> Iterator[np.ndarray]:
    if not afar:
        yield from (_index_here(folder, shard) for shard in shards)
        return
    with ThreadPoolExecutor(INDEXES_AT_A_TIME) as pool:
        yield from pool.map(partial(_index_afar, folder), shards)


def _index_here(folder: Path, shard: Shard) -> np.ndarray:
    path = folder / shard.path
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        size = None
    if size != shard.bytes:
        found = "missing" if size is None else f"{size} bytes"
        raise FormatError(f"{path}: {found}, the snapshot says {shard.bytes} bytes: truncated or replaced")
    return read_index(folder, shard)


def _index_afar(folder: Path, shard: Shard) -> np.ndarray:
    path = cast(remote.RemoteFolder, folder) / shard.index_path
    try:
        return remote.read_whole(path.url, lambda content: checked_index(content, shard, str(path)))
    except FileNotFoundError as error:
        raise FormatError(f"{path}: missing, the snapshot names it") from error


def _splits_of(shard: Shard, records: np.ndarray) -> list[str | None]:
    """The splits that samples of a shard belong to; what belongs to no overlapping split is of the shard's own."""
    masks = np.unique(records["memberships"]).tolist()
    return [name for mask in masks for name in memberships_of(mask) or (shard.split,)]


class _Table:
    """Records, gathered one shard after the other into one array, so that little memory is left in pieces."""

    def __init__(self) -> None:
        self._records = np.empty(1024, record_dtype(1))
        self._sizes: list[int] = []
        self._end = 0

    def __len__(self) -> int:
        return self._end

    def add(self, records: np.ndarray) -> None:
        """The records of the next shard, which may be none."""
        key_length = max(array.dtype["key"].itemsize for array in (self._records, records))
        self._sizes.append(len(records))
        end = self._end + len(records)
        if end > len(self._records) or key_length > self._records.dtype["key"].itemsize:
            larger = np.empty(max(end, 2 * len(self._records)), record_dtype(key_length))
            larger[: self._end] = self._records[: self._end]
            self._records = larger
        self._records[self._end : end] = records
        self._end = end

    def in_order(self) -> tuple[np.ndarray, np.ndarray]:
        """All records in the order of their keys, and the number of each one's shard."""
        shard_of = np.repeat(np.arange(len(self._sizes), dtype=np.int32), self._sizes)
        order = np.argsort(np.ascontiguousarray(self._records["key"][: self._end]), kind="stable")
        found = self._records[order], shard_of[order]
        for array in found:
            array.setflags(write=False)  # processes share them
        return found


def _of_tars(names: str, split: str | None, cache: Cache | None) -> Samples:
    tars = indexed_tars(names, cache)
    class_lists = {classes for tar in tars for classes in tar.classes}
    if len(class_lists) > 1:
        raise FormatError(f"{names}: samples of different class lists: {', '.join(name for name, _ in class_lists)}")
    table = _Table()
    splits: list[str | None] = []
    flows: list[tuple[str, dict[str, Any]]] = []
    for tar in tars:
        chosen = np.ones(len(tar.records), bool) if split is None else _of_split(tar, split)
        table.add(tar.records[chosen])
        splits += [split] if split is not None else _splits_in(tar)
        for number in dict.fromkeys(tar.flow_of[chosen].tolist()):
            if number >= 0 and tar.flows[number] not in (known for _, known in flows):
                key = tar.records["key"][chosen & (tar.flow_of == number)][0].decode()
                flows.append((f"{tar.shard.name}: sample {key}", tar.flows[number]))
    if not len(table):
        raise FormatError(f"{names}: no sample" + (f" of split {split!r}" if split else ""))
    files = tuple(tar.shard for tar in tars)
    records, shard_of = table.in_order()
    samples = Samples(records, shard_of, files, None, None, None, None, _unique(splits), tuple(flows), cache)
    return replace(samples, classes=_class_list(*class_lists.pop(), samples))


def _of_split(tar: IndexedTar, split: str) -> np.ndarray:
    number = tar.splits.index(split) if split in tar.splits else -1
    bit = membership_mask([split]) if split in MEMBERSHIPS else 0
    return np.asarray((tar.split_of == number) | (tar.records["memberships"] & bit != 0))


def _splits_in(tar: IndexedTar) -> list[str | None]:
    pairs = dict.fromkeys(zip(tar.split_of.tolist(), tar.records["memberships"].tolist(), strict=True))
    return [name for split, mask in pairs for name in memberships_of(mask) or (tar.splits[split],)]


def _unique(splits: Iterable[str | None]) -> tuple[str | None, ...]:
    return tuple(dict.fromkeys(splits))


def _class_list(name: str, sha256: str, samples: Samples) -> ClassList | None:
    """The class list with that hash: a published one, or that of the samples' labels; None where some are lacking."""
    for published in map(published_classes, PUBLISHED):
        if published.sha256 == sha256:
            return published
    indices, first = np.unique(samples.records["class_index"], return_index=True)
    numbers = first[indices != NO_CLASS]
    if indices[indices != NO_CLASS].tolist() != list(range(len(numbers))) or not len(numbers):
        return None
    labels = (str(read_json(samples[int(number)].read((METADATA,)))["label"]) for number in numbers)
    try:
        found = ClassList(name, tuple(labels))
    except ValueError:
        return None
    return found if found.sha256 == sha256 else None


def read_json(members: dict[str, bytes]) -> dict[str, Any]:
    """A sample's metadata, whose version was seen when its index was made."""
    return dict(json.loads(members[METADATA]))
