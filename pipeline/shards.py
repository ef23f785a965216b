"""Samples as tar members, finished clips, shards: the same bytes for the same outcomes, whoever wrote them when."""

import hashlib
import io
import re
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from manifests.clip import Clip
from manifests.files import complete_file, name_file, names_in, partial_file, sha256_of, write_file
from manifests.index import INDEX_SUFFIX, Shard, index_tar, read_metadata, write_records
from manifests.sample import CLASS, FLOW, METADATA, RGB, FormatError, Specification

SHARD_NAME = re.compile(r"g\d{4,}-\d{6}-[0-9a-f]{12}(\.tar|\.index\.npy)")  # and indexes
MEMBER_ORDER = (RGB, FLOW, METADATA, CLASS)


def write_sample(tar: tarfile.TarFile, key: str, members: Mapping[str, bytes]) -> None:
    """Append one sample to a tar: fixed order, time, owner and mode."""
    for member in MEMBER_ORDER:
        if member in members:
            entry = tarfile.TarInfo(f"{key}.{member}")
            entry.size = len(members[member])
            entry.mode = 0o644
            tar.addfile(entry, io.BytesIO(members[member]))


def _open_for_writing(file: BinaryIO) -> tarfile.TarFile:
    # USTAR holds no time stamps but the one that we leave at zero, and names of up to 100 characters.
    return tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)


@dataclass(frozen=True)
class FinishedClips:
    """The finished clips of one specification, `OUTPUT/clips/<spec>/`: a tar of one sample each.

    `KEY.rgb.tar` is a clip that still waits for its flow, `KEY.tar` a complete one.
    """

    folder: Path

    @classmethod
    def of(cls, output: Path, specification: Specification) -> "FinishedClips":
        """The finished clips of a dataset."""
        return cls(output / "clips" / specification.name)

    def write(self, clip: Clip, members: Mapping[str, bytes], *, complete: bool) -> None:
        """Keep a clip; a complete one takes the place of the one that waited for its flow."""
        with complete_file(self._path(clip.key, complete)) as file, _open_for_writing(file) as tar:
            write_sample(tar, clip.key, members)
        if complete:
            self._path(clip.key, False).unlink(missing_ok=True)

    def discard(self, key: str) -> None:
        """Forget a clip that waits for its flow."""
        self._path(key, False).unlink(missing_ok=True)

    def keys(self) -> set[str]:
        """Keys of the complete clips that are kept."""
        names = (name.split(".", 1) for name in names_in(self.folder))
        return {key for key, *ending in names if ending == ["tar"]}

    def read(self, clip: Clip, *, complete: bool) -> dict[str, bytes] | None:
        """The members of a kept clip; None where there is none that is whole and of the clip's label and splits."""
        path = self._path(clip.key, complete)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            (record,) = index_tar(io.BytesIO(content), path.name)  # checks the members against their checksums
            members = _members(content, path)
        except (FormatError, ValueError):
            path.unlink(missing_ok=True)  # kept only to save work: what is damaged is made again
            return None
        metadata = read_metadata(members[METADATA], str(path))
        said = metadata["label"], metadata["split"], tuple(metadata["memberships"])
        same = said == (clip.label, clip.split, clip.memberships)
        return members if same and record["key"].decode() == clip.key else None

    def members(self, key: str, *, complete: bool = True) -> dict[str, bytes]:
        """The members of a kept clip."""
        path = self._path(key, complete)
        return _members(path.read_bytes(), path)

    def _path(self, key: str, complete: bool) -> Path:
        return self.folder / (f"{key}.tar" if complete else f"{key}.rgb.tar")


def _members(content: bytes, path: Path) -> dict[str, bytes]:
    found = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            for entry in tar:
                member = tar.extractfile(entry)
                found[entry.name.partition(".")[2]] = member.read() if member else b""
    except tarfile.TarError as error:
        raise FormatError(f"{path}: not a finished clip; remove it and run again: {error}") from error
    if RGB not in found or METADATA not in found:
        raise FormatError(f"{path}: not a finished clip; remove it and run again")
    return found


class Group(NamedTuple):
    """What the samples of a shard have in common, and the name of that."""

    name: str
    split: str | None
    labelled: bool


@dataclass(frozen=True)
class PlannedShard:
    """A shard to be written: its place in the generation and the keys that go into it, sorted."""

    generation: int
    group: Group
    number: int
    keys: tuple[str, ...]


def plan_shards(clips: Iterable[Clip], generation: int, specification: Specification) -> list[PlannedShard]:
    """Assign clips to shards: a pure function of the set of clips, the generation and the specification."""
    groups: dict[Group, list[str]] = {}
    for clip in clips:
        groups.setdefault(Group(clip.group, clip.split, clip.label is not None), []).append(clip.key)
    return plan_groups(groups, generation, specification)


def plan_groups(
    groups: Mapping[Group, Iterable[str]], generation: int, specification: Specification
) -> list[PlannedShard]:
    """Assign keys to shards.

    In each group the keys are put in the order of a seeded hash, so that a shard is a fair sample of its group, and cut
    into shards of equal count; the last one holds the rest.
    """
    planned = []
    for group, members in sorted(groups.items(), key=lambda item: item[0].name):
        keys = sorted(members, key=lambda key: (_seeded_hash(key, specification.seed), key))
        for number, start in enumerate(range(0, len(keys), specification.samples_per_shard)):
            shard_keys = tuple(sorted(keys[start : start + specification.samples_per_shard]))
            planned.append(PlannedShard(generation, group, number, shard_keys))
    return planned


def _seeded_hash(key: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=16).digest()


def write_shard(planned: PlannedShard, members: Callable[[str], Mapping[str, bytes]], output: Path) -> Shard:
    """Write one shard and its index from the `members` of each key; the tar's name carries a hash of its content.

    The bytes are read back and indexed before the shard gets its name, so what is published was seen to be whole.
    """
    unnamed = output / "shards" / planned.group.name / f"g{planned.generation:04d}-{planned.number:06d}"
    with partial_file(unnamed) as file:
        with _open_for_writing(file) as tar:
            for key in planned.keys:
                write_sample(tar, key, members(key))
        size = file.tell()
        records = index_tar(file, unnamed.name)
        sha256 = sha256_of(file)
        path = unnamed.with_name(f"{unnamed.name}-{sha256[:12]}.tar")
        index = write_records(records)
        write_file(path.with_name(path.stem + INDEX_SUFFIX), index)
        name_file(file, path)
    return Shard(
        path=path.relative_to(output).as_posix(),
        group=planned.group.name,
        split=planned.group.split,
        labelled=planned.group.labelled,
        samples=len(records),
        bytes=size,
        sha256=sha256,
        index_sha256=hashlib.sha256(index).hexdigest(),
    )
