"""Files that appear under their final name only when they are complete, on a disk and in a bucket.

A folder is a `pathlib.Path`, or, in a bucket, a `upath.UPath`, which has the same methods and is no `Path`. Only what
the two do differently stands here.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

PARTIAL_SUFFIX = ".partial"
PARTIAL_NAME = re.compile(r"\..+\.[0-9a-f]{8}\.partial", re.DOTALL)


def in_bucket(path: Path) -> bool:
    """Whether a path is one of a bucket, where objects are replaced whole and folders are but parts of names."""
    return not isinstance(path, Path)


@contextmanager
def complete_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that gets the name `path` when the block ends well.

    When the block raises, nothing is left and `path` is as it was. A process that is killed leaves a file that ends in
    `PARTIAL_SUFFIX`, which no reader looks at and the next run removes.
    """
    with partial_file(path) as file:
        yield file
        name_file(file, path)


@contextmanager
def partial_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file for writing and reading: a neighbour of `path`, or for a bucket's a nameless one here.

    It is removed when the block ends, unless `name_file` has given it a name.
    """
    if in_bucket(path):
        with tempfile.TemporaryFile() as file:  # nameless, so that it goes with a process that is killed
            yield cast(BinaryIO, file)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f".{path.name}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}"
    try:
        with partial.open("x+b") as file:
            yield file
    finally:
        partial.unlink(missing_ok=True)


def name_file(file: BinaryIO, path: Path) -> None:
    """Give a partial file that is complete its name, on disk at once or not at all."""
    file.flush()
    if in_bucket(path):
        path.fs.put_file(f"/dev/fd/{file.fileno()}", path.path)  # type: ignore[attr-defined]
        return
    os.fsync(file.fileno())
    Path(file.name).replace(path)
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, content: bytes) -> None:
    """Write `content` to `path`, all or nothing."""
    if in_bucket(path):
        path.write_bytes(content)
        return
    with complete_file(path) as file:
        file.write(content)


def check_writable(path: Path) -> None:
    """Raise OSError now if no file can be written to `path`, and not when the work that it is for is done."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    with partial_file(path):
        pass


def remove_partial_files(folder: Path) -> None:
    """Remove what killed writers of this module left directly in `folder`; the caller holds the lease on it."""
    for file in folder.glob(f".*{PARTIAL_SUFFIX}"):
        if PARTIAL_NAME.fullmatch(file.name):
            file.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder with all that is in it, where there is one."""
    if in_bucket(folder):
        if folder.exists():
            folder.fs.rm(folder.path, recursive=True)  # type: ignore[attr-defined]
    else:
        shutil.rmtree(folder, ignore_errors=True)


def names_in(folder: Path) -> list[str]:
    """Names of what lies in a folder, sorted; none where there is no such folder."""
    if in_bucket(folder):
        # An object that marks the folder itself is no name in it.
        return sorted(path.name for path in folder.iterdir() if path != folder) if folder.exists() else []
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208 — a folder may hold 650,000 files
    except FileNotFoundError:
        return []


def sha256_of(file: BinaryIO) -> str:
    """Hash a file from its start in bounded memory: the hexadecimal SHA-256 of its content."""
    digest = hashlib.sha256()
    file.seek(0)
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def canonical_json(value: Any) -> bytes:
    """The one way in which a value is written as JSON: sorted keys, indented, UTF-8, a newline at the end."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
