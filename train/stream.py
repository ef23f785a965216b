"""Samples of a dataset, found by what a user types and read by their offsets."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path
from typing import Any, NamedTuple

import braceexpand
import numpy as np

from manifests.classes import PUBLISHED, ClassList, published_classes
from manifests.clip import MEMBERSHIPS, membership_mask, memberships_of
from manifests.index import MEMBERS, NO_CLASS, Shard, index_tar, read_index, read_members, read_snapshot
from manifests.sample import METADATA, FormatError, differences, flow_meaning
from model import Stream


class Sample(NamedTuple):
    """Where one sample lies."""

    key: str
    shard: Path
    record: np.void  # `manifests.index.record_dtype`

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.shard}: sample {self.key}"

    def read(self, wanted: Sequence[str] = MEMBERS) -> dict[str, bytes]:
        """Those of the `wanted` members that the sample has, checked against the index.

        Raises:
            FormatError: the shard is missing, truncated, or holds other bytes; the message names it.
        """
        try:
            with self.shard.open("rb") as file:
                return read_members(file, self.record, wanted)
        except (OSError, FormatError) as error:
            raise FormatError(f"{self.shard}: {error}") from error


@dataclass(frozen=True)
class Samples:
    """The samples that a user's words name, in the order of their keys, and the class list that indices mean."""

    samples: tuple[Sample, ...]
    classes: ClassList | None
    snapshot: str | None
    splits: tuple[str | None, ...]  # that was asked for, else those of the samples, each once
    flows: tuple[tuple[str, dict[str, Any]], ...]  # each `flow_meaning` there is, and whose it is

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def __len__(self) -> int:
        return len(self.samples)

    def require_one_flow(self, others: "Samples | None" = None) -> None:
        """Raise `FormatError` where the flow of these samples, and of `others`, was made in different ways."""
        (_, first), *rest = (*self.flows, *(others.flows if others else ())) or (("", {}),)
        for name, flow in rest:
            if changed := differences(first, flow):
                raise FormatError(f"{name}: its flow was made in another way than that before it: {'; '.join(changed)}")


def trainable_samples(samples: Samples, stream: Stream) -> Samples:
    """Those samples that have a label.

    Raises:
        FormatError: several splits at once, none with a label, a class list that is unknown, a sample without
            `stream`, or flow that was made in several ways.
    """
    first = samples.samples[0]
    if len(samples.splits) > 1:
        there = ", ".join(sorted(split or "(none)" for split in samples.splits))
        raise FormatError(f"{first.shard.parent}: samples of several splits ({there}): choose one with --split")
    if samples.classes is None:
        raise FormatError(f"{first.shard}: a tar does not hold its own class list: name the dataset's folder")
    if stream == "flow":
        samples.require_one_flow()
    labelled = [sample for sample in samples if sample.record["class_index"] != NO_CLASS]
    if not labelled:
        raise FormatError(f"{first.shard}: none of the {len(samples)} samples has a label")
    for sample in labelled:
        if not sample.record[f"{stream}_frames"]:
            raise FormatError(f"{sample.name} has no {stream}: prepared with --flow none?")
        if sample.record["class_index"] >= len(samples.classes.labels):
            raise FormatError(
                f"{sample.name} has class {sample.record['class_index']}, "
                f"{samples.classes.name} has {len(samples.classes.labels)}"
            )
    return replace(samples, samples=tuple(labelled))


def open_samples(shards: str, split: str | None = None) -> Samples:
    """Find samples.

    Args:
        shards: a dataset's folder, `DIR` or `DIR@SNAPSHOT`, or names of tar files with braces and globs.
        split: take only this split, `train1` or another of `manifests.clip.MEMBERSHIPS` where splits overlap.

    Raises:
        FormatError: nothing there, a damaged index or shard, or no sample of that split.
    """
    folder, _, name = shards.partition("@")
    if Path(shards).is_dir():
        folder, name = shards, ""
    if Path(folder).is_dir():
        return _of_dataset(Path(folder), name or None, split)
    return _of_tars(shards, split)


def _of_dataset(folder: Path, name: str | None, split: str | None) -> Samples:
    snapshot = read_snapshot(folder, name)
    if snapshot is None:
        raise FormatError(f"{folder}: no dataset is published there (there is no index.json)")
    bit = membership_mask([split]) if split in MEMBERSHIPS else 0
    samples: list[Sample] = []
    splits: list[str | None] = []
    for shard in snapshot.shards:
        if not (split is None or shard.split == split or bit):
            continue
        path = folder / shard.path
        size = path.stat().st_size if path.exists() else None
        if size != shard.bytes:
            found = "missing" if size is None else f"{size} bytes"
            raise FormatError(f"{path}: {found}, the snapshot says {shard.bytes} bytes: truncated or replaced")
        records = read_index(folder, shard)
        if split is not None and shard.split != split:
            records = records[records["memberships"] & bit != 0]
        samples += [Sample(record["key"].decode(), path, record) for record in records]
        splits += [split] if split is not None else _splits_of(shard, records)
    if not samples:
        every = (name for shard in snapshot.shards for name in _splits_of(shard, read_index(folder, shard)))
        there = sorted({name or "(none)" for name in every})
        raise FormatError(f"{folder}: no sample of split {split!r}; there are {', '.join(there) or 'no samples'}")
    samples.sort(key=lambda sample: sample.key)
    flow = flow_meaning(snapshot.specification.to_json()["flow"])
    flows = () if flow is None else ((str(folder), flow),)
    return Samples(tuple(samples), snapshot.classes, snapshot.name, _unique(splits), flows)


def _splits_of(shard: Shard, records: np.ndarray) -> list[str | None]:
    """The splits that samples of a shard belong to; what belongs to no overlapping split is of the shard's own."""
    masks = np.unique(records["memberships"]).tolist()
    return [name for mask in masks for name in memberships_of(mask) or (shard.split,)]


def _of_tars(names: str, split: str | None) -> Samples:
    try:
        paths = sorted({path for name in braceexpand.braceexpand(names) for path in _glob(name)})
    except ValueError as error:  # unbalanced braces
        raise FormatError(f"{names}: {error}") from error
    samples: list[Sample] = []
    splits: list[str | None] = []
    class_lists: set[tuple[str, str]] = set()
    flows: list[tuple[str, dict[str, Any]]] = []
    for path in map(Path, paths):
        if not path.is_file():
            raise FormatError(f"{path}: neither a dataset's folder nor a tar file that is there")
        with path.open("rb") as file:
            records = index_tar(file, str(path))
        for record in records:
            sample = Sample(record["key"].decode(), path, record)
            metadata = read_json(sample.read())
            class_lists.add((metadata["classes"]["name"], metadata["classes"]["sha256"]))
            if split is None or split == metadata["split"] or split in metadata["memberships"]:
                samples.append(sample)
                splits += [split] if split is not None else metadata["memberships"] or [metadata["split"]]
                flow = flow_meaning(metadata["flow"])
                if flow is not None and flow not in (known for _, known in flows):
                    flows.append((sample.name, flow))
    if len(class_lists) > 1:
        raise FormatError(f"{names}: samples of different class lists: {', '.join(name for name, _ in class_lists)}")
    if not samples:
        raise FormatError(f"{names}: no sample" + (f" of split {split!r}" if split else ""))
    samples.sort(key=lambda sample: sample.key)
    return Samples(tuple(samples), _published(class_lists.pop()[1]), None, _unique(splits), tuple(flows))


def _unique(splits: Iterable[str | None]) -> tuple[str | None, ...]:
    return tuple(dict.fromkeys(splits))


def _glob(pattern: str) -> list[str]:
    return glob(pattern) or [pattern]  # noqa: PTH207 — a user's pattern may be absolute, which Path.glob refuses


def _published(sha256: str) -> ClassList | None:
    """The published class list with that hash; a tar alone does not carry its labels."""
    return next((classes for classes in map(published_classes, PUBLISHED) if classes.sha256 == sha256), None)


def read_json(members: dict[str, bytes]) -> dict[str, Any]:
    """A sample's metadata, whose version was seen when its index was made."""
    return dict(json.loads(members[METADATA]))
