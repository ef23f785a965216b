"""What is published, as files: generations, their compaction, takedowns, and what a crash of any of them leaves.

Nothing here knows of Beam or of videos. The caller holds the lease on the output. Each change is made in such an order
that a crash at any moment leaves a readable dataset, and that doing it again finishes it:

- A snapshot appears whole, the root that names it comes last.
- A takedown is first recorded in the ledger, then a snapshot without the clips becomes the current one, then older
  snapshots are rewritten, then the files go.
"""

import hashlib
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from manifests.files import canonical_json, in_bucket, names_in, remove_folder, remove_partial_files, write_file
from manifests.index import (
    INDEX_SUFFIX,
    NO_CLASS,
    ROOT,
    Shard,
    Snapshot,
    published_keys,
    read_index,
    read_members,
    read_snapshot,
    root_json,
)
from manifests.sample import CLASS, FormatError
from pipeline.ledger import (
    adopt_notes,
    being_withdrawn,
    read_ledger,
    record_withdrawal_finished,
    record_withdrawn,
)
from pipeline.shards import SHARD_NAME, Group, PlannedShard, plan_groups, write_shard

SCRATCH = ".scratch"
REPORT = "report.html"
REPORT_LISTS = "report"  # folder of the lists that the page names
Places = dict[str, tuple[Shard, np.void]]  # of samples by key: the shard and the record of its index


def scratch_prefix(output: Path) -> str:
    """How folders begin that a run makes for a moment, on its machine; by it the next run there finds what was left."""
    return f"kinetics-prep-{hashlib.sha256(str(output).encode()).hexdigest()[:12]}-"


def publish(output: Path, snapshot: Snapshot) -> None:
    """Make a snapshot whose shards are there the current one; the root is replaced last."""
    _write_snapshot(output, snapshot)
    write_file(output / ROOT, canonical_json(root_json(snapshot)))


def _write_snapshot(output: Path, snapshot: Snapshot) -> None:
    folder = output / "snapshots" / snapshot.name
    write_file(folder / "shards.txt", "".join(f"{shard.path}\n" for shard in snapshot.shards).encode())
    write_file(folder / "snapshot.json", canonical_json(snapshot.to_json()))


def snapshot_names(output: Path) -> list[str]:
    """Of the snapshots that are whole, oldest first."""
    folder = output / "snapshots"
    return sorted((name for name in names_in(folder) if (folder / name / "snapshot.json").exists()), key=int)


def _next_name(output: Path) -> str:
    return f"{1 + int(snapshot_names(output)[-1]):04d}"


def all_snapshots(output: Path) -> list[Snapshot]:
    """Every snapshot there is, oldest first.

    Raises:
        FormatError: one that cannot be read.
    """
    found = [read_snapshot(output, name) for name in snapshot_names(output)]
    return [snapshot for snapshot in found if snapshot is not None]


def finish_interrupted(output: Path) -> None:
    """Finish what a run or a takedown that was killed had begun, and remove what it left.

    The newest snapshot becomes the current one where its run could not say so any more, or the root was lost; but only
    one whose shards are all there, since then it was complete, all but the root.
    """
    current, names = read_snapshot(output), snapshot_names(output)
    if names and (current is None or int(names[-1]) > int(current.name)):
        newest = read_snapshot(output, names[-1])
        assert newest is not None  # it was asked for by its name
        paths = [(output / shard.path, shard.bytes) for shard in newest.shards]
        if all(path.exists() and path.stat().st_size == size for path, size in paths):
            write_file(output / ROOT, canonical_json(root_json(newest)))
    adopt_notes(output)
    finish_withdrawals(output)
    _remove_leavings(output)


def _remove_leavings(output: Path) -> None:
    """Remove scratch, half-written files, and shards that no snapshot names."""
    remove_folder(output / SCRATCH)
    if in_bucket(output):
        for folder in Path(tempfile.gettempdir()).glob(f"{scratch_prefix(output)}*"):
            remove_folder(folder)
    else:
        remove_partial_files(output)
        for pattern in ("ledger", "clips/*", "shards/*", "snapshots/*"):
            for folder in output.glob(pattern):
                remove_partial_files(folder)
    named: set[str] = set()
    for name in snapshot_names(output):
        # Not the snapshots themselves: after a year of nights they are many, and long.
        for path in (output / "snapshots" / name / "shards.txt").read_text().splitlines():
            named |= {path, path.removesuffix(".tar") + INDEX_SUFFIX}
    for group in names_in(output / "shards"):
        for name in names_in(output / "shards" / group):
            if SHARD_NAME.fullmatch(name) and f"shards/{group}/{name}" not in named:
                (output / "shards" / group / name).unlink()


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
    if _is_one_generation(snapshot, planned, places):
        return snapshot
    shards = sorted((write_shard(shard, _reader(output, places), output) for shard in planned), key=lambda s: s.path)
    compacted = replace(snapshot, name=_next_name(output), parent=snapshot.name, shards=tuple(shards))
    publish(output, compacted)
    return compacted


def _is_one_generation(snapshot: Snapshot, planned: list[PlannedShard], places: Places) -> bool:
    """Whether the shards are those that are planned, by their names and keys."""
    there: dict[str, list[str]] = {}
    for key, (shard, _) in places.items():
        there.setdefault(shard.path.rpartition("-")[0], []).append(key)
    wanted = {f"shards/{p.group.name}/g{p.generation:04d}-{p.number:06d}": list(p.keys) for p in planned}
    return len(snapshot.shards) == len(planned) and there == wanted


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


def unpublished(output: Path) -> set[str]:
    """Clips that are finished and in no shard of the current snapshot: a run is under way, or was killed."""
    finished = {
        name.removesuffix(".tar")
        for folder in names_in(output / "clips")
        for name in names_in(output / "clips" / folder)
        if name.endswith(".tar") and not name.endswith(".rgb.tar")
    }
    snapshot = read_snapshot(output)
    return finished.difference(published_keys(output, snapshot)) if snapshot else finished


def withdraw(output: Path, keys: Collection[str]) -> None:
    """Take clips down: out of every snapshot and finished clip, for good; the ledger remembers their keys.

    Raises:
        ValueError: a key that stands nowhere; nothing is changed then.
        FormatError: a damaged dataset.
    """
    finish_interrupted(output)
    known = set(read_ledger(output))
    for folder in names_in(output / "clips"):
        known |= {name.split(".")[0] for name in names_in(output / "clips" / folder) if name.endswith(".tar")}
    for snapshot in all_snapshots(output):
        known |= set(published_keys(output, snapshot))
    unknown = sorted(set(keys) - known)
    if unknown:
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise ValueError(f"{output}: no clip {unknown[0]!r} there{more}")
    record_withdrawn(output, keys)
    finish_interrupted(output)


def finish_withdrawals(output: Path) -> None:
    """Take out of the files what the ledger says is to be withdrawn, and note there that this is done."""
    if withdrawn := being_withdrawn(output):
        _take_out(output, withdrawn)
        record_withdrawal_finished(output, withdrawn)


def _take_out(output: Path, withdrawn: Collection[str]) -> None:
    (output / REPORT).unlink(missing_ok=True)  # it may show them; `report` writes it anew
    remove_folder(output / REPORT_LISTS)
    for folder in names_in(output / "clips"):
        for key in withdrawn:
            for name in (f"{key}.tar", f"{key}.rgb.tar"):
                (output / "clips" / folder / name).unlink(missing_ok=True)
    snapshots, current = all_snapshots(output), read_snapshot(output)
    instead: dict[Shard, Shard | None] = {}
    for snapshot in snapshots:
        for shard in snapshot.shards:
            if shard not in instead:
                instead[shard] = _without(output, shard, withdrawn)

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
