"""A cache of whole shards on a node's own disk: one copy for all ranks and workers, within a limit.

CACHE/NAME.tar            a complete shard; its time of change says when it was last used
CACHE/.NAME.tar.partial   one that is being downloaded, locked by whoever does that; one without a lock was left by a
                          process that was killed, and is taken over or removed
CACHE/.lock               held while shards are named and removed
"""

import errno
import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import FileIO
from pathlib import Path

from manifests.files import PARTIAL_SUFFIX, sha256_of
from train import remote

TRIES = 3
POLL_SECONDS = 0.05
LONGEST_TURN_SECONDS = 3600.0  # for another process to write a file
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardFile:
    """A tar of samples at a path or URL, and what is known of its bytes."""

    place: str
    bytes: int
    sha256: str | None = None  # a snapshot says it
    version: str = ""  # else what a server or a disk says, which changes with the content

    @property
    def name(self) -> str:
        """What messages call it."""
        return remote.shown(self.place) if self.is_remote else self.place

    @property
    def is_remote(self) -> bool:
        """Whether it lies elsewhere."""
        return "://" in self.place


@dataclass(frozen=True)
class Cache:
    """At most `maximum_bytes` of whole shards in `folder`, and those that are being downloaded.

    The least recently used make room. Where the disk is full, although the cache holds less than its limit, they do so,
    too; where that is not enough samples are read from afar, with one warning.
    """

    folder: Path
    maximum_bytes: int

    def require_room(self, shards: Iterable[ShardFile]) -> None:
        """Raise `ValueError` where a shard is larger than the limit, `OSError` where the folder cannot be written."""
        largest = max((shard for shard in shards if shard.is_remote), key=lambda shard: shard.bytes, default=None)
        if largest is not None and largest.bytes > self.maximum_bytes:
            raise ValueError(
                f"a cache of {self.maximum_bytes} bytes holds no shard of {largest.bytes} bytes ({largest.name})"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._turn():
            pass

    def path_of(self, shard: ShardFile) -> Path:
        """Where the copy of a shard lies once it is there."""
        words = f"{shard.place} {shard.bytes} {shard.sha256 or shard.version}"
        return self.folder / f"{hashlib.sha256(words.encode()).hexdigest()[:32]}.tar"

    def fetch(self, shard: ShardFile) -> Path | None:
        """The path of a shard's copy, which is downloaded first where it is not there; None where it has no room.

        Any number of threads and processes may call it at a time: one downloads, the others wait for it. A shard that
        lies on this machine is where it is.

        Raises:
            FormatError: the shard is shorter than it should be.
            OSError: it cannot be reached, or the folder cannot be written.
        """
        if not shard.is_remote:
            return Path(shard.place)
        path = self.path_of(shard)
        for _ in range(TRIES):  # a shard may be removed again before it is used
            try:
                if path.stat().st_size != shard.bytes:
                    path.unlink()  # a machine that lost its power may have kept the name and not the content
                now = time.time_ns()  # the kernel's own clock for files is too coarse to tell two reads apart
                os.utime(path, ns=(now, now))
                return path
            except FileNotFoundError:
                pass
            with claimed_file(path) as file:
                if file is not None:
                    if not self._reserve(file, shard.bytes):
                        return None
                    _download(shard, file)
                    self._admit(file, path, shard.bytes)
        return None

    def discard(self, shard: ShardFile) -> None:
        """Remove a copy that is damaged."""
        self.path_of(shard).unlink(missing_ok=True)

    def _reserve(self, file: FileIO, size: int) -> bool:
        """Whether the disk has room, before anything is downloaded to it in vain."""
        while True:
            try:
                os.posix_fallocate(file.fileno(), 0, size)
                return True
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                file.truncate(0)
                with self._turn():
                    if not self._remove_oldest():
                        _warn_once(f"{self.folder}: {error.strerror}: shards are read from afar, not cached")
                        return False

    def _admit(self, file: FileIO, path: Path, size: int) -> None:
        """Give a complete shard its name, and the room that it needs."""
        with self._turn():
            _remove_unclaimed(self.folder)
            while sum(entry.stat().st_size for entry in self._entries()) + size > self.maximum_bytes:
                if not self._remove_oldest():
                    break
            name_claimed(file, path)

    def _remove_oldest(self) -> bool:
        oldest = min(self._entries(), key=lambda entry: entry.stat().st_mtime_ns, default=None)
        if oldest is not None:
            Path(oldest.path).unlink(missing_ok=True)
        return oldest is not None

    def _entries(self) -> list[os.DirEntry[str]]:
        with os.scandir(self.folder) as entries:
            found = []
            for entry in entries:
                if entry.name.endswith(".tar"):
                    try:
                        entry.stat()  # kept in the entry; a reader that found it damaged may have removed it
                    except FileNotFoundError:
                        continue
                    found.append(entry)
            return found

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with (self.folder / ".lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)  # a child that was forked meanwhile has it open, too


@contextmanager
def claimed_file(path: Path) -> Iterator[FileIO | None]:
    """The partial file of `path`, empty, for one thread of one process of this node; None once `path` is there.

    Who gets it gives it the name `path` when it is complete. When it is not, or the block raises, it is removed. The
    lock is the kernel's, so it ends with a process that is killed, and the next one gets the file.

    Raises:
        OSError: the folder cannot be written, or another process holds the file for longer than any download takes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f".{path.name}{PARTIAL_SUFFIX}"
    deadline = time.monotonic() + LONGEST_TURN_SECONDS
    while not path.exists():
        with FileIO(str(partial), "r+b", opener=_opened_or_made) as file:
            if _lock(file, deadline) and not path.exists():
                try:
                    file.truncate(0)
                    yield file
                    return
                finally:
                    if _is_named(file):
                        partial.unlink()
                    fcntl.flock(file, fcntl.LOCK_UN)  # a child that was forked meanwhile has it open, too
    yield None


def name_claimed(file: FileIO, path: Path) -> None:
    """Give a claimed file that is complete its name."""
    Path(str(file.name)).replace(path)


def _opened_or_made(path: str, _: int) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _lock(file: FileIO, deadline: float) -> bool:
    """Wait for the lock on a partial file; False where it was named or removed meanwhile."""
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{file.name}: another process has held it for too long") from None
            time.sleep(POLL_SECONDS)
            continue
        if _is_named(file):
            return True
        fcntl.flock(file, fcntl.LOCK_UN)
        return False


def _is_named(file: FileIO) -> bool:
    """Whether an open file is still the one of its name."""
    try:
        there = Path(str(file.name)).stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(file.fileno()))


def _remove_unclaimed(folder: Path) -> None:
    """Remove what killed processes left."""
    for partial in folder.glob(f".*.tar{PARTIAL_SUFFIX}"):
        try:
            with FileIO(str(partial)) as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                try:
                    if _is_named(file):
                        partial.unlink()
                finally:
                    fcntl.flock(file, fcntl.LOCK_UN)
        except (BlockingIOError, FileNotFoundError):
            continue


def _download(shard: ShardFile, file: FileIO) -> None:
    """Download a shard and compare it with its checksum.

    The same other bytes twice are what the place holds: they are kept, since each member is checked when it is read,
    and most may be good.
    """
    seen: set[str] = set()
    for _ in range(TRIES):
        remote.download(shard.place, shard.bytes, file.fileno())
        found = sha256_of(file)
        if shard.sha256 in (None, found) or found in seen:
            return
        seen.add(found)
    raise remote.Unreachable(f"{shard.name}: {TRIES} downloads gave as many different contents")


@cache
def _warn_once(message: str) -> None:
    _log.warning(message)
