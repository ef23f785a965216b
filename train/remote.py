"""Bytes from servers and buckets: ranges of them, asked for again until they are right or a deadline is over.

A server may stall, cut its answers, give other lengths than it says, send the whole file instead of a range, or be
unavailable for a while: that costs time. What stays wrong is an error of one of two kinds. `FormatError` says that the
content is bad, and will be; `OSError` that the place cannot be reached, which says nothing about the content.
"""

import asyncio
import logging
import os
import random
import re
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit, urlunsplit

import aiohttp
import fsspec
from fsspec.asyn import get_loop, sync

from manifests.sample import FormatError
from manifests.storage import BUCKETS, store_options

T = TypeVar("T")

OPENING_SECONDS = 60.0  # a user waits for it, who may have mistyped the host
READING_SECONDS = 900.0  # a training waits for it that has run for a week
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 20.0
TRIES_OF_WRONG_CONTENT = 4
STALL_SECONDS = 20.0  # without a byte
SLOWEST_BYTES_PER_SECOND = 64 * 1024  # below that a request is begun anew
PART_BYTES = 4 << 20
AT_A_TIME = 8  # parts of a file
_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,18})-\d{1,18}|\*)/(\d{1,18}|\*)", re.ASCII)
_log = logging.getLogger(__name__)

# gcsfs would ask for each bucket's type by another protocol, which emulators and some firewalls do not speak.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")


class Unreachable(OSError):
    """A place that gave no whole answer until the deadline."""


class RemoteFile(NamedTuple):
    """What a server says of a file: its size in bytes, what changes when it is replaced, whether it gives ranges."""

    url: str
    size: int
    version: str
    ranges: bool


def is_remote(place: str) -> bool:
    """Whether a place is a URL, not a path.

    Raises:
        FormatError: a URL of a scheme that is not read.
    """
    if "://" not in place:
        return False
    scheme = urlsplit(place).scheme
    if scheme not in ("http", "https", *BUCKETS):
        raise FormatError(f"{shown(place)}: neither a path nor a URL of http://, https://, gs://, s3://")
    return True


def shown(url: str) -> str:
    """A URL as messages name it: without a user's name, a password, or a query, which may be a signature."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


@dataclass(frozen=True)
class RemoteFolder:
    """A folder or file at a URL, with the methods of `pathlib.Path` by which a dataset's root and snapshot are read."""

    url: str

    def __truediv__(self, name: str) -> "RemoteFolder":
        return RemoteFolder(f"{self.url.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return shown(self.url)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.url.rpartition("/")[2]

    @property
    def parent(self) -> "RemoteFolder":
        """The folder that it lies in."""
        return RemoteFolder(self.url.rpartition("/")[0])

    def read_bytes(self) -> bytes:
        """All bytes of a file."""
        return read_whole(self.url, bytes)

    def glob(self, pattern: str) -> list["RemoteFolder"]:
        """Files whose names fit; `OSError` where they cannot be listed."""
        if not _in_store(self.url):
            raise OSError(f"{self}: a web server does not list its files")
        return [RemoteFolder(url) for url in names_like(f"{self.url.rstrip('/')}/{pattern}")]


def patiently(name: str, work: Callable[[], T], seconds: float) -> T:
    """Do `work` again, ever more slowly, while it fails as nets do.

    Raises:
        FormatError: the content was wrong each of several times.
        Unreachable: no success in `seconds`. `FileNotFoundError` and `PermissionError` are answers, and raised at once.
    """
    deadline, wait, wrong, warned = time.monotonic() + seconds, FIRST_WAIT_SECONDS, 0, False
    while True:
        try:
            return work()
        except (FileNotFoundError, PermissionError, Unreachable):
            raise
        except FormatError as error:
            wrong += 1
            if wrong == TRIES_OF_WRONG_CONTENT or isinstance(error.__cause__, OSError):
                raise
        except OSError as error:
            said = str(error) or type(error).__name__
            if time.monotonic() + wait > deadline:
                raise Unreachable(f"{name}: no whole answer in {seconds:g} s: {said}") from error
            if wait > FIRST_WAIT_SECONDS and not warned:
                _log.warning("%s: %s; asking again for up to %g s", name, said, seconds)
                warned = True
        time.sleep(wait * random.uniform(0.5, 1))
        wait = min(2 * wait, LONGEST_WAIT_SECONDS)


def read_whole(url: str, check: Callable[[bytes], T]) -> T:
    """What `check` makes of all bytes of a small file; where it raises `FormatError` they are asked for anew.

    Raises:
        FormatError: of `check`, several times.
        OSError: nothing there (`FileNotFoundError`), refused (`PermissionError`), not reached.
    """
    return patiently(shown(url), lambda: check(_run(_whole, _filesystem(url), url)), OPENING_SECONDS)


def read_ranges(
    url: str, ranges: Sequence[tuple[int, int]], check: Callable[[list[bytes]], T], seconds: float | None = None
) -> T:
    """What `check` makes of some ranges (first byte, byte after the last) of a file, all asked for at once.

    Raises:
        FormatError: of `check`, or the file ends before a range does, several times.
        OSError: nothing there, refused, or not reached in `seconds`, by default `READING_SECONDS`.
    """
    return patiently(
        shown(url), lambda: check(_run(_ranges, _filesystem(url), url, ranges)), seconds or READING_SECONDS
    )


def find(url: str) -> RemoteFile:
    """What the server says of a file.

    Raises:
        OSError: nothing there, refused, not reached.
    """
    return patiently(shown(url), lambda: _run(_found, _filesystem(url), url), OPENING_SECONDS)


def names_like(url: str) -> list[str]:
    """The files that a URL with wildcards names, sorted; one without is taken as it is.

    Raises:
        FormatError: wildcards where nothing can be listed, or that fit nothing.
        OSError: refused, not reached.
    """
    if not _in_store(url):
        if re.search(r"[*\[\]]", urlsplit(url).path):
            raise FormatError(f"{shown(url)}: a web server does not list its files: name them with braces, {{00..12}}")
        return [url]
    if not re.search(r"[*?\[]", url):
        return [url]
    found = patiently(shown(url), lambda: _run(_globbed, _filesystem(url), url), OPENING_SECONDS)
    if not found:
        raise FormatError(f"{url}: no file there fits")
    return sorted(f"{url.partition('://')[0]}://{name}" for name in found)


def download(url: str, size: int, descriptor: int) -> None:
    """Write the first `size` bytes of a file to an open file, several parts at a time.

    Raises:
        FormatError: the file is shorter.
        OSError: nothing there, refused, not reached, or the disk is full.
    """
    if not find(url).ranges:
        patiently(shown(url), lambda: _run(_streamed, _filesystem(url), url, size, descriptor), READING_SECONDS)
        return

    def part(start: int) -> None:
        stop = min(start + PART_BYTES, size)
        _write(descriptor, read_ranges(url, [(start, stop)], lambda parts: parts[0]), start)

    _do_all(part, range(0, size, PART_BYTES))


def _do_all(work: Callable[[int], None], items: Iterable[int]) -> None:
    """Do the work for all items, some at a time, in threads that a process which ends does not wait for."""
    left, lock = iter(items), threading.Lock()
    errors: list[BaseException] = []

    def do_some() -> None:
        while not errors:
            with lock:
                item = next(left, None)
            if item is None:
                return
            try:
                work(item)
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=do_some, daemon=True) for _ in range(AT_A_TIME)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _write(descriptor: int, content: bytes, start: int) -> None:
    while content:
        written = os.pwrite(descriptor, content, start)
        content, start = content[written:], start + written


def _in_store(url: str) -> bool:
    return urlsplit(url).scheme in BUCKETS


def _filesystem(url: str) -> Any:
    scheme = urlsplit(url).scheme
    return _filesystem_of(scheme if scheme in BUCKETS else "http", os.getpid())


@lru_cache(maxsize=8)
def _filesystem_of(scheme: str, process: int) -> Any:  # noqa: ARG001
    """Each process its own: a forked one has none of its parent's threads, and must not use its connections."""
    options = store_options(scheme) if scheme in BUCKETS else {"client_kwargs": {"trust_env": True}}
    try:
        return fsspec.filesystem(scheme, skip_instance_cache=True, **options)
    except ImportError as error:
        raise FormatError(f"{scheme}:// wants a package that is not installed: {error}") from error


def _run(function: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
    """Run a coroutine in fsspec's thread; what nets do wrong is an `OSError`."""
    try:
        return sync(get_loop(), function, *arguments)  # type: ignore[no-any-return]
    except aiohttp.InvalidURL as error:
        raise FormatError(f"{error} is no URL") from error
    except (asyncio.TimeoutError, aiohttp.ClientError) as error:
        raise ConnectionError(str(error) or "timed out") from error


async def _ranges(fs: Any, url: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    one = _store_range if _in_store(url) else _http_range
    found = await asyncio.gather(*(one(fs, url, *part) for part in ranges), return_exceptions=True)
    for part in found:
        if isinstance(part, BaseException):
            raise part
    return list(found)  # type: ignore[arg-type]


async def _whole(fs: Any, url: str) -> bytes:
    if _in_store(url):
        return await _asked_store(fs._cat_file(url), url)
    return b"".join([chunk async for chunk in _http(fs, url, 0, None)])


async def _found(fs: Any, url: str) -> RemoteFile:
    if _in_store(url):
        info = await _asked_store(fs._info(url), url)
        if info["type"] != "file":
            raise FileNotFoundError(f"{url}: a folder, not a file")
        said = (info.get(name) for name in ("generation", "ETag", "etag", "mtime", "LastModified"))
        return RemoteFile(url, int(info["size"]), " ".join(str(value) for value in said if value), True)
    async with await _http_answer(fs, url, "bytes=0-0") as response:
        told = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        ranges = response.status == 206 and told is not None and told[1] == "0"
        version = response.headers.get("ETag") or response.headers.get("Last-Modified", "")
        if told and told[2] != "*":
            return RemoteFile(url, int(told[2]), version, ranges)
        if response.status == 200 and response.content_length is not None:
            return RemoteFile(url, response.content_length, version, ranges)
    size = 0
    async for chunk in _http(fs, url, 0, None):
        size += len(chunk)
    return RemoteFile(url, size, version, ranges)


async def _globbed(fs: Any, url: str) -> list[str]:
    return list(await _asked_store(fs._glob(url), url))


async def _streamed(fs: Any, url: str, size: int, descriptor: int) -> None:
    async with aclosing(_http(fs, url, 0, size, ranged=False)) as chunks:
        at = 0
        async for chunk in chunks:
            _write(descriptor, chunk, at)
            at += len(chunk)


async def _store_range(fs: Any, url: str, start: int, stop: int) -> bytes:
    content = await _asked_store(fs._cat_file(url, start=start, end=stop), url, stop - start)
    if len(content) < stop - start:
        raise _truncated(start + len(content), stop)
    return bytes(content)


async def _asked_store(request: Coroutine[Any, Any, T], url: str, size: int = PART_BYTES) -> T:
    try:
        return await asyncio.wait_for(request, STALL_SECONDS + size / SLOWEST_BYTES_PER_SECOND)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # each client has kinds of its own, which share no base
        said = f"{type(error).__name__} {error}".strip()
        if getattr(error, "code", None) == 416 or re.search(r"InvalidRange|[Rr]ange.*not satisfiable", said):
            raise FormatError("ends before the bytes that are wanted: truncated or replaced") from None
        if re.search(r"Forbidden|AccessDenied|Credentials", said):
            raise PermissionError(f"{url}: {said}") from error
        raise ConnectionError(said) from error


async def _http_range(fs: Any, url: str, start: int, stop: int) -> bytes:
    return b"".join([chunk async for chunk in _http(fs, url, start, stop)])


async def _http(fs: Any, url: str, start: int, stop: int | None, ranged: bool = True) -> AsyncGenerator[bytes, None]:
    """Bytes `start` to `stop`, or to the end, whether the server answers with them or with the whole file."""
    asked = f"bytes={start}-{stop - 1}" if stop is not None and ranged else None
    async with await _http_answer(fs, url, asked) as response:
        told = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if response.status == 416:
            raise _truncated(int(told[2]) if told and told[2] != "*" else None, stop)
        if response.status == 206 and (told is None or told[1] != str(start)):
            raise ConnectionError(f"bytes from {start} were asked for, {response.headers.get('Content-Range')!r} came")
        first = at = start if response.status == 206 else 0
        began = time.monotonic()
        async for chunk in response.content.iter_any():
            if time.monotonic() - began > STALL_SECONDS + (at - first) / SLOWEST_BYTES_PER_SECOND:
                raise ConnectionError(f"{at - first} bytes in {time.monotonic() - began:.0f} s")
            wanted = chunk[max(start - at, 0) : None if stop is None else max(stop - at, 0)]
            at += len(chunk)
            if wanted:
                yield wanted
            if stop is not None and at >= stop:
                return
        if stop is not None:
            if response.status == 200 or (told and told[2] != "*" and int(told[2]) < stop):
                raise _truncated(at, stop)
            raise ConnectionError(f"{at - start} bytes came instead of {stop - start}")


async def _http_answer(fs: Any, url: str, asked: str | None) -> Any:
    """The answer to a request, to be closed by the caller; ranges are of the file's own bytes, never of packed ones."""
    session = await fs.set_session()
    headers = {"Accept-Encoding": "identity", **({"Range": asked} if asked else {})}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=STALL_SECONDS, sock_read=STALL_SECONDS)
    response = await session.get(fs.encode_url(url), headers=headers, timeout=timeout)
    status = response.status
    if status in (200, 206, 416):
        return response
    response.close()
    if status in (404, 410):
        raise FileNotFoundError(f"{shown(url)}: HTTP status {status}")
    if 400 <= status < 500 and status not in (408, 425, 429):
        raise PermissionError(f"{shown(url)}: HTTP status {status}")
    raise ConnectionError(f"HTTP status {status}")


def _truncated(end: int | None, stop: int | None) -> FormatError:
    after = "before that" if end is None else f"after {end} bytes"
    return FormatError(f"{stop} bytes are wanted, it ends {after}: truncated or replaced")
