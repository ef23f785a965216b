"""Is a dataset what its snapshot says? Hashes, indexes, and on request the videos themselves."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flow import decode_flow_codes
from manifests.files import sha256_of
from manifests.index import (
    Shard,
    Snapshot,
    index_tar,
    published_keys,
    read_index,
    read_members,
    read_metadata,
    read_snapshot,
)
from manifests.sample import FLOW, METADATA, RGB, FormatError, Specification, differences, flow_meaning
from pipeline.ledger import read_ledger
from pipeline.video import VideoError, decode_luma


@dataclass(frozen=True)
class Verified:
    """What was looked at, and every difference found, each naming its file and sample."""

    snapshot: str
    shards: int
    samples: int
    decoded: int
    problems: tuple[str, ...]


def verify(folder: Path, decode: int | None = 0) -> Verified:
    """Check the current snapshot of a dataset.

    Args:
        folder: the dataset.
        decode: how many samples to decode, drawn by a fixed seed; None for all.

    Raises:
        FormatError: no dataset, or a root or snapshot that cannot be read.
    """
    snapshot = read_snapshot(folder)
    if snapshot is None:
        raise FormatError(f"{folder}: nothing is published there")
    problems: list[str] = []
    indexed: list[tuple[Shard, np.void]] = []
    for shard in snapshot.shards:
        try:
            records = read_index(folder, shard)
        except FormatError as error:
            problems.append(str(error))
            continue
        problems += check_shard(folder, shard, records)
        indexed += [(shard, record) for record in records]
    chosen = indexed if decode is None else random.Random(0).sample(indexed, min(decode, len(indexed)))
    for shard, record in chosen:
        found = check_sample(folder, shard, record, snapshot.specification)
        problems += [f"{shard.path}: {record['key'].decode()}: {problem}" for problem in found]
    problems += _check_ledger(folder, snapshot) if not problems else []
    return Verified(snapshot.name, len(snapshot.shards), len(indexed), len(chosen), tuple(problems))


def check_shard(folder: Path, shard: Shard, records: np.ndarray) -> Iterator[str]:
    """Compare a shard's bytes with the snapshot, and its content with its index."""
    path = folder / shard.path
    if not path.exists():
        yield f"{shard.path}: missing"
        return
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            if size != shard.bytes:
                yield f"{shard.path}: {size} bytes, the snapshot says {shard.bytes}"
            elif sha256_of(file) != shard.sha256:
                yield f"{shard.path}: other bytes than published (checksum {shard.sha256})"
            found = index_tar(file, shard.path)
        if not np.array_equal(found, records):
            yield f"{shard.path}: its content differs from its index"
    except FormatError as error:
        yield str(error)


def check_sample(folder: Path, shard: Shard, record: np.void, specification: Specification) -> Iterator[str]:
    """Decode a sample whole and compare it with its metadata, and how its flow was made with the specification."""
    try:
        with (folder / shard.path).open("rb") as file:
            members = read_members(file, record)
        metadata = read_metadata(members[METADATA], METADATA)
        found = {"rgb": decode_luma(members[RGB]).shape}
        if FLOW in members:
            found["flow"] = decode_flow_codes(members[FLOW]).shape[:3]
    except (OSError, VideoError, ValueError) as error:
        yield str(error)
        return
    said_flow, want_flow = flow_meaning(metadata["flow"]), flow_meaning(specification.to_json()["flow"])
    if said_flow != want_flow:
        changed = "; ".join(differences({"flow": want_flow}, {"flow": said_flow}))
        yield f"its flow was made in another way than the dataset's: {changed}"
    for stem, shape in found.items():
        said = tuple(metadata[stem][name] for name in ("frames", "height", "width"))
        if said != shape:
            yield f"{stem} decodes to {shape} frames, height, width; the metadata says {said}"
    if "flow" in found and found["flow"] != (found["rgb"][0] - 1, *found["rgb"][1:]):
        yield f"flow of {found['flow']} beside RGB of {found['rgb']}"


def _check_ledger(folder: Path, snapshot: Snapshot) -> Iterator[str]:
    """Every published clip is recorded as well, and every clip recorded as well is published."""
    recorded = {key for key, entry in read_ledger(folder).items() if entry["reason"] is None}
    published = set(published_keys(folder, snapshot))
    for key in sorted(recorded - published):
        yield f"ledger: {key} is recorded as ok, but is in no shard"
    for key in sorted(published - recorded):
        yield f"ledger: {key} is in a shard, but is not recorded as ok"
