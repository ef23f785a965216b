"""Archives of clips that are cut already, as CVDF's mirror of Kinetics has them: read as streams, never unpacked.

A member's name ends in the clip's key, `{youtube_id}_{start:06d}_{end:06d}.mp4`; what stands before it counts for
nothing, and members with other names do not count.
"""

import bz2
import errno
import gzip
import hashlib
import io
import lzma
import shutil
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import compress
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from manifests.files import write_file
from manifests.folders import VIDEO_SUFFIXES
from manifests.index import KEY
from pipeline.storage import open_download

PREFIX = "tar:"
ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
CONTENTS = "archives"  # the keys of those that were read to their end, so that none is read again for nothing
REPLACEMENT = "replacement"
MAXIMUM_MEMBER_BYTES = 1 << 31
MAXIMUM_HEADER_BYTES = 1 << 20
LONG_HEADERS = (  # what stands before a member, is read whole, and may say any size
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
DAMAGE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError, ValueError)
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
        parent = where.rpartition("/")[0]
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


def read_archive(archive: str, folder: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Path | None]]:
    """The clips of an archive, one after the other.

    Args:
        archive: a path or a URL.
        folder: where to put the wanted ones; whoever asks for the next one has removed, or will remove, the file.
        wanted: whether a clip is, by its key.

    Yields:
        A clip's key, and its file; None where it is not wanted, or larger than `MAXIMUM_MEMBER_BYTES`.

    Raises:
        ArchiveError: missing, damaged, or cut short, also where that is seen only at its end.
    """
    try:
        with open_download(archive).open("rb") as file:
            stream = _Decompressed(file)
            tar = tarfile.open(fileobj=cast(Any, stream), mode="r|", tarinfo=_Entry)  # noqa: SIM115 — the file is closed
            while (entry := tar.next()) is not None:
                setattr(tar, "members", [])  # noqa: B010 — it would remember all that it has seen
                name = PurePosixPath(entry.name)
                key, ending = name.name.partition(".")[0], name.suffix.lower()
                plain = entry.isreg() and not entry.issparse()
                if plain and ending in VIDEO_SUFFIXES and KEY.fullmatch(key):
                    take = wanted(key) and entry.size <= MAXIMUM_MEMBER_BYTES
                    yield key, _save(tar, entry, folder / (key + ending)) if take else None
            stream.require(tar.offset + tarfile.BLOCKSIZE)
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise ArchiveError(f"{archive}: {str(error) or type(error).__name__}") from error


class _Entry(tarfile.TarInfo):
    """A tar's header that does not ask for more memory than a name takes."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Entry":
        entry = super().frombuf(buf, encoding, errors)
        if entry.type in LONG_HEADERS and entry.size > MAXIMUM_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {entry.size} bytes")
        return entry


def _save(tar: tarfile.TarFile, entry: tarfile.TarInfo, path: Path) -> Path:
    content = tar.extractfile(entry)
    assert content is not None  # it is a file
    with path.open("wb") as file:
        shutil.copyfileobj(content, file)
    return path


class _Decompressed:
    """The bytes of a tar, whichever way it is compressed, that knows in the end whether all were there."""

    def __init__(self, file: IO[bytes]) -> None:
        buffered = io.BufferedReader(cast(io.RawIOBase, file), 1 << 20)
        head = buffered.peek(6)
        for magic, opened in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ", lzma.open)):
            if head.startswith(magic):
                self.file = cast(IO[bytes], opened(buffered))
                break
        else:
            self.file = cast(IO[bytes], buffered)
        self.total = 0

    def read(self, size: int) -> bytes:
        block = self.file.read(size)
        self.total += len(block)
        return block

    def require(self, size: int) -> None:
        """Read to the end, where compressed bytes are checked. Raise `EOFError` for fewer than `size` bytes in all."""
        while self.read(1 << 20):
            pass
        if self.total < size:
            raise EOFError("cut short, the end-of-archive mark is missing")


def known_contents(output: Path, archive: str) -> set[str] | None:
    """Keys of an archive that was read to its end before, in the version that is there now; else None."""
    try:
        return set(_contents(output, archive).read_text().split())
    except OSError:
        return None


def note_contents(output: Path, archive: str, keys: Iterable[str]) -> None:
    """Keep the keys of an archive that was read to its end."""
    write_file(_contents(output, archive), "".join(f"{key}\n" for key in sorted(set(keys))).encode())


def to_read(output: Path, source: ArchiveSource, due: Collection[str]) -> tuple[tuple[str, ...], ...]:
    """The source's waves, each with those of its archives that may hold any of the clips that are due."""

    def may_hold(archive: str) -> bool:
        known = known_contents(output, archive)
        return known is None or not known.isdisjoint(due)

    with ThreadPoolExecutor(ROUND_TRIPS) as pool:
        return tuple(tuple(compress(wave, pool.map(may_hold, wave))) for wave in source.waves)


def _contents(output: Path, archive: str) -> Path:
    identity = f"{archive} {open_download(archive).stat().st_size}"
    return output / CONTENTS / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.txt"
