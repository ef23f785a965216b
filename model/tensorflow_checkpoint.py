"""Reads TensorFlow "V2" checkpoints, the form in which DeepMind released I3D, without TensorFlow.

A checkpoint named `PREFIX` is two kinds of file. `PREFIX.index` is a LevelDB table that maps each variable's name
to a protobuf entry (dtype, shape, shard, offset, size, checksum); `PREFIX.data-SSSSS-of-NNNNN` are the variables'
bytes. Formats: tensorflow/core/protobuf/tensor_bundle.proto and LevelDB's doc/table_format.md.

Files come from strangers, so nothing in them is trusted: every table block and every variable is checked against its
CRC32C, and every length against the file that holds it before any memory is taken. Whatever is wrong is a
`CheckpointError`.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import google_crc32c
import numpy as np

_TABLE_MAGIC = 0xDB4775248B80FB57
_FOOTER_BYTES = 48
_BLOCK_TRAILER_BYTES = 5  # compression type, then the masked CRC32C of contents and type

# Released indices have 11 to 20 kB. The limits keep a hostile table, whose prefix compression could expand a few
# bytes into a long key again and again, from taking more memory than the file deserves.
_LARGEST_INDEX_BYTES = 4 << 20
_LARGEST_KEY_BYTES = 1024
_LARGEST_RANK = 32

# The numbers of tensorflow/core/framework/types.proto that numpy has a type for.
_DTYPES = {
    1: "<f4",
    2: "<f8",
    3: "<i4",
    4: "|u1",
    5: "<i2",
    6: "|i1",
    9: "<i8",
    17: "<u2",
    19: "<f2",
    22: "<u4",
    23: "<u8",
}


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, of an unknown kind, or of another network than the one asked for."""


@dataclass(frozen=True)
class _Variable:
    """Where a variable's bytes are: `[offset, offset + size)` of data file `shard`."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    shard: int
    offset: int
    size: int
    masked_crc32c: int


@dataclass(frozen=True)
class _Index:
    shards: int
    variables: dict[str, _Variable]


def checkpoint_prefix(path: str | os.PathLike[str]) -> Path:
    """The prefix of a checkpoint that is named by its prefix (`…/model.ckpt`) or by its `.index` file."""
    return Path(os.fspath(path).removesuffix(".index"))


def checkpoint_files(path: str | os.PathLike[str]) -> list[Path]:
    """The `.index` file and the data files of the checkpoint at `path`, in that order.

    The data files are those that the index names; they need not exist.

    Raises:
        CheckpointError: if the index is missing or damaged.
    """
    prefix = checkpoint_prefix(path)
    shards = _read_index(prefix).shards
    return [_index_file(prefix), *(_data_file(prefix, shard, shards) for shard in range(shards))]


def list_variables(path: str | os.PathLike[str]) -> dict[str, tuple[tuple[int, ...], np.dtype[np.generic]]]:
    """Names, shapes and dtypes of the variables of a checkpoint, in the order of its index.

    Only the `.index` file needs to be there.

    Args:
        path: the checkpoint's prefix or its `.index` file.

    Returns:
        name → (shape, dtype).

    Raises:
        CheckpointError: if the index is missing, damaged, or holds what this reader does not know.
    """
    index = _read_index(checkpoint_prefix(path))
    return {name: (variable.shape, variable.dtype) for name, variable in index.variables.items()}


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All variables of a checkpoint, each checked against its CRC32C.

    Args:
        path: the checkpoint's prefix or its `.index` file.

    Returns:
        name → array of the stored shape and dtype.

    Raises:
        CheckpointError: if a file is missing or damaged, or holds what this reader does not know.
    """
    prefix = checkpoint_prefix(path)
    index = _read_index(prefix)
    arrays: dict[str, np.ndarray] = {}
    for shard in range(index.shards):
        file = _data_file(prefix, shard, index.shards)
        members = {name: v for name, v in index.variables.items() if v.shard == shard}
        try:
            with file.open("rb") as stream:
                arrays.update(_read_shard(file, stream, members))
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read: {error.strerror or error}") from error
        except MemoryError:
            raise CheckpointError(f"{file}: its variables do not fit into memory") from None
    return {name: arrays[name] for name in index.variables}


def _index_file(prefix: Path) -> Path:
    return Path(f"{prefix}.index")


def _data_file(prefix: Path, shard: int, shards: int) -> Path:
    return Path(f"{prefix}.data-{shard:05d}-of-{shards:05d}")


def _read_shard(file: Path, stream: BinaryIO, members: dict[str, _Variable]) -> dict[str, np.ndarray]:
    file_bytes = os.fstat(stream.fileno()).st_size
    end = 0
    arrays = {}
    for name, variable in sorted(members.items(), key=lambda item: (item[1].offset, item[1].size)):
        start, stop = variable.offset, variable.offset + variable.size
        if stop > file_bytes:
            raise CheckpointError(f"{file}: {name} is at bytes [{start}, {stop}), the file has {file_bytes}")
        if start < end:
            raise CheckpointError(f"{file}: {name} at bytes [{start}, {stop}) overlaps the variable before it")
        end = stop
        stream.seek(start)
        content = stream.read(variable.size)
        if len(content) != variable.size:
            raise CheckpointError(f"{file}: ends within {name}")
        if _masked_crc32c(content) != variable.masked_crc32c:
            raise CheckpointError(f"{file}: checksum of {name} does not match, the file is damaged")
        # A copy, because an array over bytes is read-only.
        arrays[name] = np.frombuffer(content, variable.dtype).reshape(variable.shape).copy()
    return arrays


def _read_index(prefix: Path) -> _Index:
    file = _index_file(prefix)
    try:
        with file.open("rb") as stream:
            content = stream.read(_LARGEST_INDEX_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror or error}") from error
    if len(content) > _LARGEST_INDEX_BYTES:
        raise CheckpointError(f"{file}: more than {_LARGEST_INDEX_BYTES} bytes, too large for an index")
    try:
        return _parse_index(content)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from None


def _parse_index(content: bytes) -> _Index:
    shards = 0
    variables: dict[str, _Variable] = {}
    for position, (key, value) in enumerate(_table_entries(content)):
        if position == 0:
            if key:
                raise CheckpointError("the header is missing")
            shards = _parse_header(value)
            continue
        try:
            name = key.decode("utf-8")
        except UnicodeDecodeError:
            raise CheckpointError(f"the variable name {key!r} is not UTF-8") from None
        try:
            variable = _parse_entry(value)
        except CheckpointError as error:
            raise CheckpointError(f"{name}: {error}") from None
        if not 0 <= variable.shard < shards:
            raise CheckpointError(f"{name}: is in data file {variable.shard} of {shards}")
        variables[name] = variable
    if not shards:
        raise CheckpointError("the table is empty")
    return _Index(shards, variables)


# The table: blocks of sorted, prefix-compressed entries; an index block that lists them; a footer.


def _table_entries(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    if len(content) < _FOOTER_BYTES:
        raise CheckpointError(f"{len(content)} bytes, too short for a table")
    footer_start = len(content) - _FOOTER_BYTES
    if int.from_bytes(content[-8:], "little") != _TABLE_MAGIC:
        raise CheckpointError("not the index of a TensorFlow checkpoint (wrong magic number at its end)")
    start, size, position = _block_handle(content, footer_start)
    _block(content, start, size, footer_start)  # the meta-index, which checkpoints leave empty: its checksum only
    start, size, _ = _block_handle(content, position)
    block_list = _block(content, start, size, footer_start)

    previous_key: bytes | None = None
    previous_stop = 0
    for _, handle in _block_entries(block_list):
        start, size, _ = _block_handle(handle, 0)
        # Blocks are written one after the other; insisting on it bounds the work by the size of the file.
        if start < previous_stop:
            raise CheckpointError("table blocks overlap")
        previous_stop = start + size + _BLOCK_TRAILER_BYTES
        for key, value in _block_entries(_block(content, start, size, footer_start)):
            if previous_key is not None and key <= previous_key:
                raise CheckpointError(f"table keys are not in order at {key!r}")
            previous_key = key
            yield key, value


def _block_handle(content: bytes, position: int) -> tuple[int, int, int]:
    """Offset and size of a block, and the position after the two numbers."""
    offset, position = _varint(content, position)
    size, position = _varint(content, position)
    return offset, size, position


def _block(content: bytes, start: int, size: int, limit: int) -> bytes:
    stop = start + size + _BLOCK_TRAILER_BYTES
    if stop > limit:
        raise CheckpointError(f"a table block at bytes [{start}, {stop}) passes the table's end at {limit}")
    if _masked_crc32c(content[start : stop - 4]) != int.from_bytes(content[stop - 4 : stop], "little"):
        raise CheckpointError(f"checksum of the table block at byte {start} does not match, the file is damaged")
    compression = content[start + size]
    if compression != 0:
        raise CheckpointError(f"the table block at byte {start} is compressed (type {compression})")
    return content[start : start + size]


def _block_entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    if len(block) < 4:
        raise CheckpointError("a table block is too short")
    restarts = int.from_bytes(block[-4:], "little")
    entries_stop = len(block) - 4 * (restarts + 1)
    if entries_stop < 0:
        raise CheckpointError(f"a table block of {len(block)} bytes claims {restarts} restart points")
    entries = block[:entries_stop]
    position = 0
    key = b""
    while position < len(entries):
        shared, position = _varint(entries, position)
        unshared, position = _varint(entries, position)
        value_bytes, position = _varint(entries, position)
        value_start = position + unshared
        value_stop = value_start + value_bytes
        if shared > len(key) or shared + unshared > _LARGEST_KEY_BYTES or value_stop > len(entries):
            raise CheckpointError("a table entry has impossible lengths")
        key = key[:shared] + entries[position:value_start]
        yield key, entries[value_start:value_stop]
        position = value_stop


def _masked_crc32c(content: bytes) -> int:
    """CRC32C, rotated and shifted as LevelDB stores it (a CRC over data that holds CRCs is weak)."""
    crc: int = google_crc32c.value(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


# The protobuf messages: BundleHeaderProto, BundleEntryProto and TensorShapeProto.


def _parse_header(message: bytes) -> int:
    """The number of data files."""
    shards = 0
    for field, value in _fields(message):
        if field == 1:
            shards = _signed(value)
        elif field == 2 and value != 0:
            raise CheckpointError("big-endian checkpoints are not supported")
    if not 1 <= shards <= 99999:
        raise CheckpointError(f"the header names {shards} data files")
    return shards


def _parse_entry(message: bytes) -> _Variable:
    dtype_number = shard = offset = size = crc = 0
    shape: tuple[int, ...] = ()
    for field, value in _fields(message):
        if field == 1:
            dtype_number = _signed(value)
        elif field == 2:
            shape = _parse_shape(_submessage(value))
        elif field == 3:
            shard = _signed(value)
        elif field == 4:
            offset = _signed(value)
        elif field == 5:
            size = _signed(value)
        elif field == 6:
            crc = _signed(value)
        elif field == 7:
            raise CheckpointError("is stored in slices, which are not supported")
    if dtype_number not in _DTYPES:
        raise CheckpointError(f"has TensorFlow's dtype {dtype_number}, which is not supported")
    dtype = np.dtype(_DTYPES[dtype_number])
    if offset < 0 or size < 0:
        raise CheckpointError(f"is at offset {offset} with {size} bytes")
    if math.prod(shape) * dtype.itemsize != size:
        raise CheckpointError(f"has {size} bytes, shape {list(shape)} of {dtype} needs another number")
    return _Variable(shape, dtype, shard, offset, size, crc)


def _parse_shape(message: bytes) -> tuple[int, ...]:
    shape = []
    for field, value in _fields(message):
        if field == 2:
            shape.append(_signed(dict(_fields(_submessage(value))).get(1, 0)))
        elif field == 3 and value:
            raise CheckpointError("has a shape of unknown rank")
        if len(shape) > _LARGEST_RANK:
            raise CheckpointError(f"has more than {_LARGEST_RANK} dimensions")
    # numpy refuses more bytes than an index can count, even where a zero among the dimensions makes them none.
    if min(shape, default=0) < 0 or math.prod(max(size, 1) for size in shape) > 1 << 48:
        raise CheckpointError(f"has the impossible shape {shape}")
    return tuple(shape)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and raw values of a protobuf message: unsigned numbers, or bytes of a nested message."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        field, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            value, position = _varint(message, position)
            yield field, value
            continue
        if wire_type == 2:
            size, position = _varint(message, position)
        elif wire_type in (1, 5):
            size = 8 if wire_type == 1 else 4
        else:
            raise CheckpointError(f"a protobuf field has wire type {wire_type}")
        content = message[position : position + size]
        if len(content) != size:
            raise CheckpointError("a protobuf message ends early")
        position += size
        yield field, content if wire_type == 2 else int.from_bytes(content, "little")


def _signed(value: int | bytes) -> int:
    """A protobuf integer, whose negative numbers are stored as 64-bit two's complement."""
    if isinstance(value, bytes):
        raise CheckpointError("a protobuf field is a message where a number belongs")
    return value - (1 << 64) if value >= 1 << 63 else value


def _submessage(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise CheckpointError("a protobuf field is a number where a message belongs")
    return value


def _varint(content: bytes, position: int) -> tuple[int, int]:
    """A number in base 128, lowest digit first, of 64 bits at most; and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(content):
            raise CheckpointError("ends within a number")
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >= 1 << 64:
                raise CheckpointError("a number has more than 64 bits")
            return value, position
    raise CheckpointError("a number has more than 64 bits")
