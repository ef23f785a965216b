"""What is published, as files: generations, their compaction, takedowns, and what a crash of any of them leaves.

Nothing here knows of Beam or of videos. The caller holds the lease on the output. Each change is made in such an order
that a crash at any moment leaves a readable dataset, and that doing it again finishes it:

- A snapshot appears whole, the root that names it comes last.
- A takedown is first recorded in the ledger, then a snapshot without the clips becomes the current one, then older
  snapshots are rewritten, then the files go.
"""

import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from manifests.files import canonical_json, remove_partial_files, write_file
from manifests.index import (
    NO_CLASS,
    ROOT,
    Shard,
    Snapshot,
    read_index,
    read_members,
    read_snapshot,
    root_json,
)
from manifests.sample import CLASS, FormatError
from pipeline.ledger import WITHDRAWN, adopt_failures, read_ledger, record_withdrawn
from pipeline.shards import SHARD_NAME, Group, PlannedShard, plan_groups, write_shard

SCRATCH = ".scratch"
REPORT = "report.html"
Places = dict[str, tuple[Shard, np.void]]  # of samples by key: the shard and the record of its index


def publish(output: Path, snapshot: Snapshot) -> None:
    """Make a snapshot whose shards are there the current one; the root is replaced last."""
    _write_snapshot(output, snapshot)
    write_file(output / ROOT, canonical_json(root_json(snapshot)))


def _write_snapshot(output: Path, snapshot: Snapshot) -> None:
    folder = output / "snapshots" / snapshot.name
    write_file(folder / "shards.txt", "".join(f"{shard.path}\n" for shard in snapshot.shards).encode())
    write_file(folder / "snapshot.json", canonical_json(snapshot.to_json()))


def _next_name(output: Path) -> str:
    return f"{1 + int(all_snapshots(output)[-1].name):04d}"


def all_snapshots(output: Path) -> list[Snapshot]:
    """Every snapshot there is, oldest first.

    Raises:
        FormatError: one that cannot be read.
    """
    names = sorted(path.parent.name for path in (output / "snapshots").glob("*/snapshot.json"))
    found = [read_snapshot(output, name) for name in names]
    return [snapshot for snapshot in found if snapshot is not None]


def finish_interrupted(output: Path) -> None:
    """Finish what a run or a takedown that was killed had begun, and remove what it left.

    The newest snapshot becomes the current one where its run could not say so any more, or the root was lost; but only
    one whose shards are all there, since then it was complete, all but the root.
    """
    current, snapshots = read_snapshot(output), all_snapshots(output)
    if snapshots and (current is None or snapshots[-1].name > current.name):
        paths = [(output / shard.path, shard.bytes) for shard in snapshots[-1].shards]
        if all(path.exists() and path.stat().st_size == size for path, size in paths):
            write_file(output / ROOT, canonical_json(root_json(snapshots[-1])))
    adopt_failures(output)
    finish_withdrawals(output)
    _remove_leavings(output)


def _remove_leavings(output: Path) -> None:
    """Remove scratch, half-written files, and shards that no snapshot names."""
    shutil.rmtree(output / SCRATCH, ignore_errors=True)
    remove_partial_files(output)
    for pattern in ("ledger", "clips/*", "shards/*", "snapshots/*"):
        for folder in output.glob(pattern):
            remove_partial_files(folder)
    shards = [shard for snapshot in all_snapshots(output) for shard in snapshot.shards]
    named = {output / path for shard in shards for path in (shard.path, shard.index_path)}
    for file in (output / "shards").glob("*/*"):
        if SHARD_NAME.fullmatch(file.name) and file not in named:
            file.unlink()


def compact(output: Path) -> Snapshot:
    """Publish all live clips as one generation: shard by shard the bytes of a fresh run with the same outcomes.

    Older snapshots stay as they are. A dataset that is one generation already is left alone.

    Returns:
        The current snapshot.

    Raises:
        FormatError: nothing published, or damaged shards.
    """
    snapshot = read_snapshot(output)
    if snapshot is None:
        raise FormatError(f"{output}: nothing is published there")
    finish_interrupted(output)
    snapshot = read_snapshot(output)
    assert snapshot is not None
    groups: dict[Group, list[str]] = {}
    places: Places = {}
    for shard in snapshot.shards:
        found = _places(output, shard)
        groups.setdefault(Group(shard.group, shard.split, shard.labelled), []).extend(found)
        places |= found
    planned = plan_groups(groups, 1, snapshot.specification)
    shards = sorted((write_shard(shard, _reader(output, places), output) for shard in planned), key=lambda s: s.path)
    if tuple(shards) == snapshot.shards:
        return snapshot
    compacted = replace(snapshot, name=_next_name(output), parent=snapshot.name, shards=tuple(shards))
    publish(output, compacted)
    return compacted


def _places(output: Path, shard: Shard) -> Places:
    """Where the samples of a shard lie."""
    return {record["key"].decode(): (shard, record) for record in read_index(output, shard)}


def _reader(output: Path, places: Places) -> Callable[[str], Mapping[str, bytes]]:
    """A function that gives the members of a published sample."""

    def members(key: str) -> dict[str, bytes]:
        shard, record = places[key]
        with (output / shard.path).open("rb") as file:
            found = read_members(file, record)
        if record["class_index"] != NO_CLASS:
            found[CLASS] = str(record["class_index"]).encode()
        return found

    return members


def withdraw(output: Path, keys: Collection[str]) -> None:
    """Take clips down: out of every snapshot and finished clip, for good; the ledger remembers their keys.

    Raises:
        ValueError: a key that the ledger does not know; nothing is changed then.
        FormatError: a damaged dataset.
    """
    ledger = read_ledger(output)
    unknown = sorted(set(keys) - ledger.keys())
    if unknown:
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise ValueError(f"{output}: no clip {unknown[0]!r} in the ledger{more}")
    record_withdrawn(output, keys)
    finish_interrupted(output)


def finish_withdrawals(output: Path) -> None:
    """Take out of the files what the ledger says is withdrawn."""
    withdrawn = {key for key, entry in read_ledger(output).items() if entry["reason"] == WITHDRAWN}
    if not withdrawn:
        return
    for folder in (output / "clips").glob("*"):
        for key in withdrawn:
            for file in (folder / f"{key}.tar", folder / f"{key}.rgb.tar"):
                file.unlink(missing_ok=True)
    snapshots, current = all_snapshots(output), read_snapshot(output)
    instead: dict[Shard, Shard | None] = {}
    for snapshot in snapshots:
        for shard in snapshot.shards:
            if shard not in instead:
                instead[shard] = _without(output, shard, withdrawn)
    if all(shard == other for shard, other in instead.items()):
        return

    def cleared(snapshot: Snapshot) -> Snapshot:
        left = (instead[shard] for shard in snapshot.shards)
        return replace(snapshot, shards=tuple(shard for shard in left if shard is not None))

    if current is not None and cleared(current) != current:
        publish(output, replace(cleared(current), name=_next_name(output), parent=current.name))
    for snapshot in snapshots:
        if cleared(snapshot) != snapshot:
            _write_snapshot(output, cleared(snapshot))
    for shard, other in instead.items():
        if shard != other:
            (output / shard.path).unlink(missing_ok=True)
            (output / shard.index_path).unlink(missing_ok=True)
    (output / REPORT).unlink(missing_ok=True)  # it may show them; `report` writes it anew


def _without(output: Path, shard: Shard, withdrawn: Collection[str]) -> Shard | None:
    """The shard without those clips, written beside it; itself where it holds none, None where nothing is left."""
    places = _places(output, shard)
    left = tuple(key for key in places if key not in withdrawn)
    if len(left) == len(places):
        return shard
    if not left:
        return None
    generation, number = Path(shard.path).name[1:].split("-")[:2]
    group = Group(shard.group, shard.split, shard.labelled)
    return write_shard(PlannedShard(int(generation), group, int(number), left), _reader(output, places), output)
