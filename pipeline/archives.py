"""Archives of clips that are cut already, as CVDF's mirror of Kinetics has them: read as streams, never unpacked.

A member's name ends in the clip's key, `{youtube_id}_{start:06d}_{end:06d}.mp4`; what stands before it counts for
nothing, and members with other names do not count.
"""

import asyncio
import bz2
import gzip
import hashlib
import io
import lzma
import os
import tarfile
import time
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import compress
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, cast

import aiohttp
import fsspec

from manifests.files import in_bucket, write_file
from manifests.folders import VIDEO_SUFFIXES
from manifests.index import KEY
from manifests.storage import open_download

PREFIX = "tar:"
ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
CONTENTS = "archives"  # the keys of those that were read to their end, so that none is read again for nothing
REPLACEMENT = "replacement"
MAXIMUM_MEMBER_BYTES = 1 << 28  # a clip of ten seconds has some megabytes
MAXIMUM_HEADER_BYTES = 1 << 20
LONG_HEADERS = (  # what stands before a member, is read whole, and may say any size
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
BLOCK_BYTES = 1 << 22
EMPTY_READS = 8
DAMAGE = (
    *(tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError, ValueError, OverflowError, RecursionError),
    *(aiohttp.ClientError, asyncio.TimeoutError),
)
CONNECT_SECONDS, SILENCE_SECONDS = 30, 60
BACK_OFF_SECONDS = (1.0, 5.0, 20.0)  # before a block is asked for again
PARTIAL_CONTENT = 206
URL_CHARACTERS = "%/:=&?~#+!$,;'@()*[]"  # what a name may hold beside them is escaped
VERSIONS = ("mtime", "etag", "generation", "last_modified", "lastmodified", "updated")
ROUND_TRIPS = 16  # at a time


class ArchiveError(Exception):
    """An archive that cannot be read to its end."""


@dataclass(frozen=True)
class ArchiveSource:
    """Archives by their paths or URLs, in waves: what a later wave holds counts only where no earlier one has it well.

    CVDF mends clips that its archives hold broken by a further archive of replacements: those come first.
    """

    waves: tuple[tuple[str, ...], ...]


def archive_source(text: str) -> ArchiveSource:
    """Read `tar:WHERE`: an archive, a folder with archives, or a text file that names one a line (CVDF's `*_path.txt`).

    Each may be a path, or a URL of http, https, gs or s3; names in a text file are taken relative to it.

    Raises:
        ValueError: none of these, or no archive there.
        OSError: a folder or text file that cannot be read.
    """
    where = text.removeprefix(PREFIX)
    place = open_download(where)
    if where.endswith(ENDINGS):
        archives = [where]
    elif where.endswith(".txt"):
        parent = where.rpartition("/")[0] or "."
        lines = (line.strip() for line in place.read_text().splitlines())
        archives = [line if "://" in line or line.startswith("/") else f"{parent}/{line}" for line in lines if line]
        wrong = next((line for line in archives if not line.endswith(ENDINGS)), None)
        if wrong is not None:
            raise ValueError(f"source {text!r}: {wrong!r} is no archive ({', '.join(ENDINGS)})")
    elif place.is_dir():
        files = sorted(file for file in place.rglob("*") if not file.name.startswith("._"))
        archives = [str(file) for file in files if file.name.endswith(ENDINGS)]
    else:
        raise ValueError(f"source {text!r}: no archive ({', '.join(ENDINGS)}), nor a folder, nor a .txt list of them")
    if not archives:
        raise ValueError(f"source {text!r}: no archive there ({', '.join(ENDINGS)})")
    for archive in archives:
        open_download(archive)  # a scheme that is not read is found before the run
    mended = tuple(archive for archive in archives if REPLACEMENT in PurePosixPath(archive).name.lower())
    plain = tuple(archive for archive in archives if archive not in mended)
    return ArchiveSource(tuple(wave for wave in (mended, plain) if wave))


class Member(NamedTuple):
    """A clip of an archive, where its video was put (None: it was not wanted, or is too large), and its size."""

    key: str
    file: Path | None
    bytes: int


def read_archive(archive: str, folder: Path, wanted: Callable[[str], bool]) -> Iterator[Member]:
    """The clips of an archive, one after the other.

    Args:
        archive: a path or a URL.
        folder: where to put the wanted ones; whoever takes them removes them.
        wanted: whether a clip is, by its key.

    Raises:
        ArchiveError: missing, damaged, or cut short, also where that is seen only at its end.
    """
    with _naming(archive):
        file = _open(archive)
    with file:
        with _naming(archive):
            stream = _Decompressed(file)
            tar = tarfile.open(fileobj=cast(Any, stream), mode="r|", tarinfo=_Entry)  # noqa: SIM115 — `file` is closed
        while True:
            with _naming(archive):
                entry = tar.next()
            if entry is None:
                break
            setattr(tar, "members", [])  # noqa: B010 — it would remember all that it has seen
            name = PurePosixPath(entry.name)
            plain = entry.isreg() and not entry.issparse() and name.suffix.lower() in VIDEO_SUFFIXES
            if plain and KEY.fullmatch(name.stem):
                take = entry.size <= MAXIMUM_MEMBER_BYTES and wanted(name.stem)
                path = folder / (name.stem + name.suffix.lower())
                yield Member(name.stem, _save(archive, tar, entry, path) if take else None, entry.size)
        with _naming(archive):
            _require_the_end(tar, stream)


@contextmanager
def _naming(archive: str) -> Iterator[None]:
    """What reading raises is the archive's fault, and says which one."""
    try:
        yield
    except DAMAGE as error:
        raise ArchiveError(f"{archive}: {type(error).__name__}: {error}") from error


def _save(archive: str, tar: tarfile.TarFile, entry: tarfile.TarInfo, path: Path) -> Path:
    with _naming(archive):
        content = tar.extractfile(entry)
    assert content is not None  # it is a file
    with path.open("wb") as file:  # what is wrong with this folder is not the archive's fault
        while True:
            with _naming(archive):
                block = content.read(BLOCK_BYTES)
            if not block:
                return path
            file.write(block)


def _require_the_end(tar: tarfile.TarFile, stream: "_Decompressed") -> None:
    """A damaged header looks like the end to `tarfile`; behind the real one there are zeros, and one block at least."""
    while block := cast(IO[bytes], tar.fileobj).read(BLOCK_BYTES):
        if block.strip(b"\0"):
            raise tarfile.ReadError(f"damaged at byte {tar.offset}: no header of a member")
    while stream.read(BLOCK_BYTES):  # compressed bytes are checked at their end
        pass
    if stream.total < tar.offset + tarfile.BLOCKSIZE:
        raise EOFError("cut short, the end-of-archive mark is missing")


class _Entry(tarfile.TarInfo):
    """A tar's header that does not ask for more memory than a name takes."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Entry":
        entry = super().frombuf(buf, encoding, errors)
        if entry.type in LONG_HEADERS and entry.size > MAXIMUM_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {entry.size} bytes")
        return entry


class _Decompressed:
    """The bytes of a tar, whichever way it is compressed, and how many have been read."""

    def __init__(self, file: IO[bytes]) -> None:
        buffered = io.BufferedReader(cast(io.RawIOBase, file), BLOCK_BYTES)
        head = buffered.peek(6)
        for magic, opened in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ", lzma.open)):
            if head.startswith(magic):
                self.file = cast(IO[bytes], opened(buffered))
                break
        else:
            self.file = cast(IO[bytes], buffered)
        self.total = self.empty = 0

    def read(self, size: int) -> bytes:
        block = self.file.read(size)
        self.total += len(block)
        self.empty = 0 if block else self.empty + 1
        if self.empty > EMPTY_READS:
            raise EOFError("cut short")  # `tarfile` would read on to where a header says that its member ends
        return block


def _open(archive: str) -> IO[bytes]:
    """Open for reading from the start; over HTTP by ranges, of which a lost one is asked for again, where served."""
    path = open_download(archive)
    if not archive.startswith(("http://", "https://")):
        return path.open("rb")
    url = urllib.parse.quote(archive, safe=URL_CHARACTERS)
    first = urllib.request.Request(url, headers={"Range": "bytes=0-0"})  # noqa: S310 — it is http
    with urllib.request.urlopen(first, timeout=CONNECT_SECONDS) as answer:  # noqa: S310
        ranges = answer.status == PARTIAL_CONTENT
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
    fs = fsspec.filesystem("http", client_kwargs={"timeout": timeout}, skip_instance_cache=True)
    if ranges:
        return cast(IO[bytes], _Patient(fs.open(archive, block_size=BLOCK_BYTES)))
    return cast(IO[bytes], fs.open(archive, block_size=0))


class _Patient(io.RawIOBase):
    """A file on the net, each block of which is asked for again when a connection is lost."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        for wait_seconds in (*BACK_OFF_SECONDS, None):
            try:
                block = self.file.read(len(buffer))
                break
            except DAMAGE:
                if wait_seconds is None:
                    raise
                time.sleep(wait_seconds)
        buffer[: len(block)] = block
        return len(block)

    def close(self) -> None:
        self.file.close()
        super().close()


def identity(archive: str) -> str:
    """An archive's name, size, and what tells its versions apart where it lies: time, tag or generation."""
    path = open_download(archive)
    if not in_bucket(path):
        status = path.stat()
        return f"{archive} {status.st_size} {status.st_mtime_ns}"
    fields = path.fs.info(path.path)  # type: ignore[attr-defined]
    found = {key.lower(): value for key, value in fields.items()}
    return f"{archive} {found['size']} {[str(found[name]) for name in VERSIONS if found.get(name)]}"


def known_contents(output: Path, archive: str) -> set[str] | None:
    """Keys of an archive that was read to its end before, in the version that is there now; else None."""
    try:
        return set(_contents(output, identity(archive)).read_text().split())
    except OSError:
        return None


def note_contents(output: Path, version: str, keys: Iterable[str]) -> None:
    """Keep the keys of an archive that was read to its end; `version` is its `identity` from before that."""
    write_file(_contents(output, version), "".join(f"{key}\n" for key in sorted(set(keys))).encode())


def to_read(output: Path, source: ArchiveSource, due: Collection[str]) -> tuple[tuple[str, ...], ...]:
    """The source's waves, each with those of its archives that may hold any of the clips that are due."""

    def may_hold(archive: str) -> bool:
        known = known_contents(output, archive)
        return known is None or not known.isdisjoint(due)

    with ThreadPoolExecutor(ROUND_TRIPS) as pool:
        return tuple(tuple(compress(wave, pool.map(may_hold, wave))) for wave in source.waves)


def _contents(output: Path, version: str) -> Path:
    return output / CONTENTS / f"{hashlib.sha256(os.fsencode(version)).hexdigest()[:32]}.txt"
