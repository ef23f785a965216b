"""What a published dataset is: a root that names a snapshot, snapshots that name shards, an index beside each shard.

DIR/index.json                      names the current snapshot; replaced atomically, last
DIR/snapshots/0001/snapshot.json    specification, class list, totals, shards
DIR/snapshots/0001/shards.txt       the shards' paths, a line each
DIR/shards/GROUP/g0001-000000-HASH.tar        the shard
DIR/shards/GROUP/g0001-000000-HASH.index.npy  its index: a numpy array with a record a sample, `record_dtype`
DIR/ledger/outcomes.jsonl           what became of every listed clip, a JSON object a line
"""

import hashlib
import io
import json
import re
import struct
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from types import NoneType
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from manifests.classes import ClassList
from manifests.clip import MEMBERSHIPS, membership_mask
from manifests.files import canonical_json, in_bucket
from manifests.sample import (
    CLASS,
    FLOW,
    FORMAT_VERSION,
    METADATA,
    RGB,
    FormatError,
    Specification,
    specification_from_json,
)

ROOT = "index.json"
LEDGER = "ledger/outcomes.jsonl"
FORMAT = "quo-vadis-dataset"
NO_CLASS = -1
MEMBERS = (RGB, FLOW, METADATA)
INDEX_SUFFIX = ".index.npy"
SNAPSHOT_NAME = re.compile(r"[0-9]{4,9}")
SHARD_PATH = re.compile(r"shards/[A-Za-z0-9_-]+/g[0-9]{4,9}-[0-9]{6}-[0-9a-f]{12}\.tar")
KEY = re.compile(r"[A-Za-z0-9_-]{1,100}")
KEYS = re.compile(rb"(?:[A-Za-z0-9_-]{1,100}\n)*")
NPY_LENGTH, NPY_LENGTH_AT, NPY_HEADER_AT = struct.Struct("<H"), 8, 10  # npy format 1.0: magic, version, length, header
INDEXES_AT_A_TIME = 32  # each of which is a round trip in a bucket
MAXIMUM_METADATA_BYTES = 1 << 20
# The fields of a sample's metadata that readers rely on. Where there is no flow, `flow` is None.
METADATA_FIELDS: dict[str, tuple[type, ...]] = {
    "label": (str, NoneType),
    "split": (str, NoneType),
    "memberships": (list,),
    "class_index": (int, NoneType),
    "classes.name": (str,),
    "classes.sha256": (str,),
    **{f"rgb.{field}": (int,) for field in ("frames", "width", "height")},
    "rgb.sha256": (str,),
    **{f"flow.{field}": (int,) for field in ("frames", "width", "height", "bound_pixels")},
    **{f"flow.{field}": (str,) for field in ("variant", "variant_version", "sha256")},
    "flow.parameters": (dict,),
}


def record_dtype(key_length: int) -> np.dtype[np.void]:
    """Layout of one sample in a shard's index.

    Offsets count from the start of the tar to the first byte of a member's content; a length of 0 says that the
    member is absent. Frames count pictures. `sha256` is that of the member's content. Bit i of `memberships` is set for
    a sample of the i-th of `manifests.clip.MEMBERSHIPS`, which the snapshot names.
    """
    fields: list[tuple[Any, ...]] = [("key", f"S{key_length}"), ("class_index", "<i4"), ("memberships", "<u4")]
    for member in MEMBERS:
        name = member.split(".")[0]
        fields += [(f"{name}_offset", "<u8"), (f"{name}_length", "<u8"), (f"{name}_sha256", "u1", (32,))]
    fields += [("rgb_frames", "<u4"), ("flow_frames", "<u4")]
    return np.dtype(fields)


class Member(NamedTuple):
    """Where a member's content lies in its tar and what it is; small members (metadata, class) keep their content."""

    offset: int
    length: int
    sha256: bytes
    content: bytes


def index_tar(file: BinaryIO, name: str) -> np.ndarray:
    """Index a shard from its bytes, reading it once from start to end in bounded memory.

    Args:
        file: the tar, positioned at its start.
        name: what error messages call it.

    Returns:
        Records of `record_dtype`, one a sample, in the tar's order.

    Raises:
        FormatError: a damaged or truncated tar, a member that belongs to no sample, a sample without RGB or metadata,
            or metadata that contradicts the members.
    """
    samples: dict[str, dict[str, Member]] = {}
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            end = 0
            for entry in tar:
                key, _, member = entry.name.partition(".")
                plain = entry.isreg() and not entry.issparse()
                if not plain or member not in (*MEMBERS, CLASS) or not KEY.fullmatch(key):
                    raise FormatError(f"{name}: {entry.name!r} is no member of a sample")
                if entry.offset_data + entry.size > size:
                    raise FormatError(f"{name}: truncated inside {entry.name!r}")
                if member in samples.setdefault(key, {}):
                    raise FormatError(f"{name}: {entry.name!r} stands twice")
                samples[key][member] = _read_member(tar, entry, keep=member in (METADATA, CLASS), name=name)
                end = entry.offset_data + entry.size
            _require_end_of_archive(file, end, name)
    except tarfile.TarError as error:
        raise FormatError(f"{name}: not a whole tar file: {error}") from error
    return _records_of(samples, name)


def _read_member(tar: tarfile.TarFile, entry: tarfile.TarInfo, keep: bool, name: str) -> Member:
    stream = tar.extractfile(entry)
    assert stream is not None  # the caller has seen that it is a file
    digest, kept, length = hashlib.sha256(), bytearray(), 0
    while block := stream.read(1 << 20):
        digest.update(block)
        length += len(block)
        if keep:
            kept += block
            if length > MAXIMUM_METADATA_BYTES:
                raise FormatError(f"{name}: {entry.name!r} is larger than {MAXIMUM_METADATA_BYTES} bytes")
    if length != entry.size:
        raise FormatError(f"{name}: truncated inside {entry.name!r}")
    return Member(entry.offset_data, length, digest.digest(), bytes(kept))


def _records_of(samples: dict[str, dict[str, Member]], name: str) -> np.ndarray:
    records = np.zeros(len(samples), record_dtype(max(map(len, samples), default=1)))
    for record, (key, members) in zip(records, samples.items(), strict=True):
        for required in (RGB, METADATA):
            if required not in members:
                raise FormatError(f"{name}: sample {key!r} has no {required}")
        metadata = read_metadata(members[METADATA].content, f"{name}: {key}.{METADATA}")
        record["key"] = key.encode("ascii")
        record["class_index"] = _class_index(members, f"{name}: {key}.{CLASS}")
        record["memberships"] = membership_mask(metadata["memberships"])
        for member in MEMBERS:
            if member in members:
                stem = member.split(".")[0]
                record[f"{stem}_offset"], record[f"{stem}_length"] = members[member].offset, members[member].length
                record[f"{stem}_sha256"] = np.frombuffer(members[member].sha256, np.uint8)
        record["rgb_frames"] = metadata["rgb"]["frames"]
        record["flow_frames"] = metadata["flow"]["frames"] if metadata["flow"] else 0
        check_record(record, metadata, f"{name}: sample {key!r}")
    return records


def _class_index(members: dict[str, Member], name: str) -> int:
    if CLASS not in members:
        return NO_CLASS
    text = members[CLASS].content
    if not re.fullmatch(rb"[0-9]{1,6}", text):
        raise FormatError(f"{name}: {text[:20]!r} is no class index")
    return int(text)


def _require_end_of_archive(file: BinaryIO, end: int, name: str) -> None:
    """A tar ends with two zero blocks; Python's reader takes a file cut between two members for a whole one."""
    file.seek(-(-end // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
    if file.read(2 * tarfile.BLOCKSIZE) != bytes(2 * tarfile.BLOCKSIZE):
        raise FormatError(f"{name}: truncated, the end-of-archive mark is missing")


def check_record(record: np.void, metadata: dict[str, Any], name: str) -> None:
    """Raise `FormatError` when metadata and members of a sample contradict each other."""
    for stem in ("rgb", "flow"):
        said = metadata[stem]["sha256"] if metadata[stem] else None
        found = record[f"{stem}_sha256"].tobytes().hex() if record[f"{stem}_length"] else None
        if said != found:
            raise FormatError(f"{name}: the metadata gives {stem} the checksum {said}, its content has {found}")
    if metadata["class_index"] != (None if record["class_index"] == NO_CLASS else int(record["class_index"])):
        raise FormatError(f"{name}: class {record['class_index']} beside metadata of class {metadata['class_index']}")


def read_metadata(content: bytes, name: str) -> dict[str, Any]:
    """A sample's metadata; `FormatError` for another format version or what is no metadata at all."""
    try:
        metadata = json.loads(content, parse_constant=_no_number)
        version = metadata["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError(f"{name}: not the metadata of a sample: {error!r}") from error
    if version != FORMAT_VERSION:
        raise FormatError(f"{name}: format version {version!r}, this program reads version {FORMAT_VERSION}")
    for field, kinds in METADATA_FIELDS.items():
        if field.startswith("flow.") and metadata.get("flow", ...) is None:
            continue
        value: Any = metadata
        for part in field.split("."):
            value = value.get(part, ...) if isinstance(value, dict) else ...
        in_range = not isinstance(value, int) or 0 <= value < 1 << 31
        if not isinstance(value, kinds) or isinstance(value, bool) or not in_range:
            raise FormatError(f"{name}: not the metadata of a sample: {field} is missing, of another type or range")
    try:
        membership_mask(metadata["memberships"])
    except ValueError as error:
        raise FormatError(f"{name}: not the metadata of a sample: {error}") from error
    return dict(metadata)


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON's")


def write_records(records: np.ndarray) -> bytes:
    """An index as the bytes of an `.npy` file."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, records, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def read_records(content: bytes, name: str) -> np.ndarray:
    """Read an index back; `FormatError` when it is none of ours."""
    try:
        dtype, count, start = _npy_header(content[: NPY_LENGTH.unpack_from(content, NPY_LENGTH_AT)[0] + NPY_HEADER_AT])
        records = np.frombuffer(content, dtype, offset=start)
    except (ValueError, EOFError, struct.error) as error:
        raise FormatError(f"{name}: not an index: {error}") from error
    if "key" not in (dtype.names or ()) or dtype != record_dtype(dtype["key"].itemsize):
        raise FormatError(f"{name}: an index of another layout")
    if len(records) != count:
        raise FormatError(f"{name}: not an index: {len(records)} records where {count} are said to be")
    if not KEYS.fullmatch(b"\n".join([*records["key"].tolist(), b""])):
        wrong = next(key for key in records["key"].tolist() if not KEYS.fullmatch(key + b"\n"))
        raise FormatError(f"{name}: {wrong!r} is no sample's key")
    return records


@lru_cache(maxsize=64)  # almost all indexes of a dataset begin with the same bytes, and a header is slow to read
def _npy_header(header: bytes) -> tuple[np.dtype[np.void], int, int]:
    """What an `.npy` file holds: its records' type, how many they are, and where they begin."""
    file = io.BytesIO(header)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("not of npy format 1.0")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if len(shape) != 1 or fortran_order or dtype.hasobject:
        raise ValueError(f"an array of shape {shape} and type {dtype}")
    return dtype, shape[0], file.tell()


@dataclass(frozen=True)
class Shard:
    """One shard of a snapshot; `path` is relative to the dataset's root. Labelled: every sample has a class index."""

    path: str
    group: str
    split: str | None
    labelled: bool
    samples: int
    bytes: int
    sha256: str
    index_sha256: str

    @property
    def index_path(self) -> str:
        """Path of the shard's index, relative to the dataset's root."""
        return self.path.removesuffix(".tar") + INDEX_SUFFIX


@dataclass(frozen=True)
class Snapshot:
    """One state of a dataset: all that a reader needs to read it, and nothing that a later run changes."""

    name: str
    parent: str | None
    specification: Specification
    classes: ClassList
    shards: tuple[Shard, ...]
    provenance: tuple[dict[str, str], ...] = ()  # one entry a generation: the versions that made it

    @property
    def sha256(self) -> str:
        """SHA-256 (hexadecimal) of its `snapshot.json`, as it is written."""
        return hashlib.sha256(canonical_json(self.to_json())).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The snapshot as JSON values."""
        return {
            "format": FORMAT,
            "format_version": self.specification.format_version,
            "name": self.name,
            "parent": self.parent,
            "specification": self.specification.to_json(),
            "specification_name": self.specification.name,
            "classes": {"name": self.classes.name, "labels": list(self.classes.labels)},
            "memberships": list(MEMBERSHIPS),
            "totals": {
                "samples": sum(shard.samples for shard in self.shards),
                "shards": len(self.shards),
                "bytes": sum(shard.bytes for shard in self.shards),
            },
            "shards": [asdict(shard) for shard in self.shards],
            "provenance": list(self.provenance),
        }


def snapshot_from_json(value: dict[str, Any], name: str) -> Snapshot:
    """Read a snapshot back; `FormatError` for what is none, or of a version that is not known."""
    if value.get("format") != FORMAT:
        raise FormatError(f"{name}: not a snapshot of a dataset")
    try:
        snapshot = Snapshot(
            name=value["name"],
            parent=value["parent"],
            specification=specification_from_json(value["specification"]),
            classes=ClassList(value["classes"]["name"], tuple(value["classes"]["labels"])),
            shards=tuple(Shard(**shard) for shard in value["shards"]),
            provenance=tuple(value["provenance"]),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise FormatError(f"{name}: not a snapshot of a dataset: {error}") from error
    if value.get("memberships") != list(MEMBERSHIPS):
        raise FormatError(f"{name}: memberships that this program does not know: {value.get('memberships')}")
    for shard in snapshot.shards:
        if not isinstance(shard.path, str) or not SHARD_PATH.fullmatch(shard.path):
            raise FormatError(f"{name}: {shard.path!r} is no shard's path")
        numbers, checksums = (shard.samples, shard.bytes), (shard.sha256, shard.index_sha256)
        if not all(type(n) is int and n >= 0 for n in numbers) or not all(isinstance(c, str) for c in checksums):
            raise FormatError(
                f"{name}: {shard.path} is said to have {numbers} samples and bytes, checksums {checksums}"
            )
        if shard.path.split("/")[1] != shard.group:
            raise FormatError(f"{name}: {shard.path} is said to be of group {shard.group!r}")
    return snapshot


def read_snapshot(folder: Path, name: str | None = None) -> Snapshot | None:
    """The snapshot `name` of the dataset in `folder`, by default the current one; None where nothing is published.

    Raises:
        FormatError: a root or a snapshot that is damaged, missing or of an unknown version.
    """
    sha256 = None
    if name is None:
        root = folder / ROOT
        try:
            value = _json_object(root.read_bytes(), root)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise FormatError(f"{root}: cannot be read: {error}") from error
        number = value.get("snapshot")
        if value.get("format") != FORMAT or not (isinstance(number, str) and SNAPSHOT_NAME.fullmatch(number)):
            raise FormatError(f"{root}: not the root of a dataset")
        name, sha256 = number, value.get("snapshot_sha256")
    if not SNAPSHOT_NAME.fullmatch(name):
        raise FormatError(f"{folder}: {name!r} is no snapshot's name, such as 0001")
    path = folder / "snapshots" / name / "snapshot.json"
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise FormatError(f"{folder}: no snapshot {name}{_others(folder)}") from None
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error}") from error
    value = _json_object(content, path)
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise FormatError(f"{path}: not the bytes that {ROOT} names (checksum {sha256})")
    snapshot = snapshot_from_json(value, str(path))
    if snapshot.name != name:
        raise FormatError(f"{path}: says that it is snapshot {snapshot.name!r}")
    return snapshot


def _others(folder: Path) -> str:
    try:
        there = ", ".join(sorted(file.parent.name for file in folder.glob("snapshots/*/snapshot.json")))
    except OSError:  # as a web server, which does not list what it holds
        return ""
    return f"; there are {there or 'none'}"


def root_json(snapshot: Snapshot) -> dict[str, Any]:
    """The root file's value that makes `snapshot` the current one."""
    return {
        "format": FORMAT,
        "format_version": snapshot.specification.format_version,
        "snapshot": snapshot.name,
        "snapshot_sha256": snapshot.sha256,
    }


def read_index(folder: Path, shard: Shard) -> np.ndarray:
    """The index of a shard, checked against the snapshot.

    Raises:
        FormatError: missing, other bytes than published, or another number of samples.
    """
    path = folder / shard.index_path
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error}") from error
    return checked_index(content, shard, str(path))


def checked_index(content: bytes, shard: Shard, name: str) -> np.ndarray:
    """The index of a shard from its bytes; `FormatError` where they are not those that the snapshot names."""
    if hashlib.sha256(content).hexdigest() != shard.index_sha256:
        raise FormatError(f"{name}: not the bytes that the snapshot names (checksum {shard.index_sha256})")
    records = read_records(content, name)
    if len(records) != shard.samples:
        raise FormatError(f"{name}: {len(records)} samples, the snapshot says {shard.samples}")
    require_inside(records, shard.bytes, name)
    return records


def require_inside(records: np.ndarray, size: int, name: str) -> None:
    """Raise `FormatError` where an index names bytes that a shard of `size` bytes does not have."""
    for stem in ("rgb", "flow", "json"):
        lengths, offsets = records[f"{stem}_length"], records[f"{stem}_offset"]
        if ((lengths > size) | (offsets > size - np.minimum(lengths, size))).any():
            raise FormatError(f"{name}: {stem} of a sample lies behind the end of its shard")


def member_ranges(record: np.void, wanted: Sequence[str] = MEMBERS) -> dict[str, tuple[int, int]]:
    """Where those of the `wanted` members that a sample has begin and end in its shard, in bytes."""
    ranges = {}
    for member in wanted:
        stem = member.split(".")[0]
        start, length = int(record[f"{stem}_offset"]), int(record[f"{stem}_length"])
        if length:
            ranges[member] = start, start + length
    return ranges


def check_member(record: np.void, member: str, content: bytes) -> None:
    """Raise `FormatError` where a member of a sample is not of the length and the bytes that its index says."""
    stem, key = member.split(".")[0], record["key"].decode("ascii")
    if len(content) < int(record[f"{stem}_length"]):
        raise FormatError(f"truncated inside {key}.{member}")
    if hashlib.sha256(content).digest() != record[f"{stem}_sha256"].tobytes():
        raise FormatError(f"{key}.{member} holds other bytes than the index says")


def read_members(shard: BinaryIO, record: np.void, wanted: Sequence[str] = MEMBERS) -> dict[str, bytes]:
    """Those of the `wanted` members that a sample has, read from its shard by their offsets.

    Raises:
        FormatError: the shard ends before the sample does, or holds other bytes than its index says.
    """
    members = {}
    for member, (start, stop) in member_ranges(record, wanted).items():
        shard.seek(start)
        members[member] = shard.read(stop - start)
        check_member(record, member, members[member])
    return members


def published_keys(folder: Path, snapshot: Snapshot) -> Iterator[str]:
    """Keys of all samples of a snapshot."""
    with ThreadPoolExecutor(INDEXES_AT_A_TIME if in_bucket(folder) else 1) as pool:
        for records in pool.map(partial(read_index, folder), snapshot.shards):
            for key in records["key"].tolist():
                yield key.decode("ascii")


def _json_object(content: bytes, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path}: not a JSON object")
    return value
