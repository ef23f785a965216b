"""Files that appear under their final name only when they are complete."""

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

PARTIAL_SUFFIX = ".partial"
PARTIAL_NAME = re.compile(r"\..+\.[0-9a-f]{8}\.partial", re.DOTALL)


@contextmanager
def complete_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary neighbour of `path` for writing; flush it to disk and rename it when the block ends well.

    When the block raises, the temporary file is removed and `path` is as it was. A process that is killed leaves a
    file that ends in `PARTIAL_SUFFIX`, which no reader looks at and the next run removes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}")
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _flush_folder(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, content: bytes) -> None:
    """Write `content` to `path`, all or nothing."""
    with complete_file(path) as file:
        file.write(content)


def remove_partial_files(folder: Path) -> None:
    """Remove what killed writers of this module left directly in `folder`; the caller holds the lease on it."""
    for file in folder.glob(f".*{PARTIAL_SUFFIX}"):
        if PARTIAL_NAME.fullmatch(file.name):
            file.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Hash a file in bounded memory: the hexadecimal SHA-256 of its content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def canonical_json(value: Any) -> bytes:
    """The one way in which a value is written as JSON: sorted keys, indented, UTF-8, a newline at the end."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
