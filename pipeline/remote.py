"""A video on the net of which only the parts that are read are downloaded.

FFmpeg reads it from a server of this process on loopback, as if the whole file lay there: what it asks for is fetched
then, by HTTP ranges, and kept. So a cut out of it is by construction the cut out of the whole file, in any container:
where the index lies, how far apart keyframes are and how far a decoder reads ahead need not be known. FFmpeg itself is
never on the net: it would be one more program to hold there, and YouTube is slow for it, since it asks for no pieces.
"""

import re
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import takewhile
from pathlib import Path
from typing import Any

import yt_dlp
from yt_dlp.globals import plugin_dirs
from yt_dlp.networking import Request
from yt_dlp.networking.exceptions import HTTPError, RequestError, TransportError

BLOCK_BYTES = 256 * 1024
# Who has read so many in a row reads the whole file, and a request a block would be many.
LONG_READ_BLOCKS = 32
BLOCKS_AT_A_TIME = 8
TRIES = 3
WAIT_SECONDS = 1.0
SOCKET_TIMEOUT_SECONDS = 20.0
FIRST_BLOCK_DEADLINE_SECONDS = 120.0  # as long as the tries and their timeouts together may take, and some time more
SEND_BUFFER_BYTES = 16 * 1024  # what FFmpeg does not take was fetched in vain
CONTENT_RANGE = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15})", re.ASCII)
RANGE = re.compile(r"bytes=(\d{1,15})-(\d{0,15})", re.ASCII)

plugin_dirs.value = []  # what lies in the user's folders is no part of this program


class NoRanges(Exception):
    """The server does not serve ranges of the file."""


class FetchError(Exception):
    """The net failed; the message is that of the tool."""


class RemoteVideo:
    """The file at `url`, served at `local_url` until it is closed.

    Raises:
        NoRanges: it is served as a whole only, or is empty.
        FetchError: it is not served at all.
    """

    def __init__(
        self, url: str, scratch: Path, *, name: str, headers: Mapping[str, str], parameters: Mapping[str, Any]
    ) -> None:
        """Ask for the first block.

        Args:
            url: where the file is.
            scratch: an existing folder for the parts that have been fetched.
            name: what the file is called here; FFmpeg looks at its suffix.
            headers: sent with every request.
            parameters: of `yt_dlp.YoutubeDL`: `proxy`, `cookiefile`.
        """
        self.downloaded_bytes = 0
        self.failure = ""  # what the net said, once it has failed
        self._url, self._headers = url, dict(headers)
        self._net = yt_dlp.YoutubeDL(
            {"quiet": True, "no_warnings": True, "socket_timeout": SOCKET_TIMEOUT_SECONDS, **parameters},
            auto_init=False,
        )
        self._lock = threading.Lock()
        self._size = 0
        self._there: set[int] = set()
        self._in_a_row = 0
        self._file = (scratch / "parts").open("w+b")
        self._server: ThreadingHTTPServer | None = None
        try:
            self._begin()
        except BaseException:
            self.close()
            raise
        token = secrets.token_hex(16)
        self._server = _Server(("127.0.0.1", 0), _handler(self, f"/{token}/{name}"))
        self.local_url = f"http://127.0.0.1:{self._server.server_port}/{token}/{name}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self._size

    def close(self) -> None:
        """Stop serving. A request that is under way is not waited for: it may never end."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
        self._file.close()
        self._net.close()

    def _begin(self) -> None:
        """Fetch the first block, in a thread: a server that sends a byte now and then outlasts a socket's timeout."""
        errors: list[BaseException] = []

        def first() -> None:
            try:
                self._fetch(0, 1)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=first, daemon=True)
        thread.start()
        thread.join(FIRST_BLOCK_DEADLINE_SECONDS)
        if errors:
            raise errors[0]
        if thread.is_alive():
            raise FetchError(f"timed out: no {BLOCK_BYTES} bytes in {FIRST_BLOCK_DEADLINE_SECONDS:g} s")

    def read(self, position: int, count: int) -> bytes:
        """Bytes of the file from `position`, at most `count` and at most to a block's end."""
        number = position // BLOCK_BYTES
        with self._lock:
            if number not in self._there:
                self._in_a_row = self._in_a_row + 1 if number - 1 in self._there else 0
                more = takewhile(lambda block: block not in self._there, range(number, number + BLOCKS_AT_A_TIME))
                self._fetch(number, len(list(more)) if self._in_a_row >= LONG_READ_BLOCKS else 1)
            self._file.seek(position)
            return self._file.read(min(count, (number + 1) * BLOCK_BYTES - position, self._size - position))

    def _fetch(self, number: int, blocks: int) -> None:
        start, wanted = number * BLOCK_BYTES, blocks * BLOCK_BYTES
        if self._size:
            wanted = min(wanted, self._size - start)
        if self.failure:
            raise FetchError(self.failure)
        try:
            content = self._content(start, wanted)
        except (RequestError, FetchError, ValueError) as error:  # ValueError: redirects to what is no URL
            self.failure = str(error)
            raise FetchError(self.failure) from error
        self.downloaded_bytes += len(content)
        self._file.seek(start)
        self._file.write(content)
        self._there.update(range(number, number + blocks))

    def _content(self, start: int, wanted: int) -> bytes:
        for tried in range(1, TRIES + 1):
            try:
                return self._asked_once(start, wanted)
            except HTTPError as error:
                if error.status < 500 or tried == TRIES:
                    raise
            except TransportError:
                if tried == TRIES:
                    raise
            time.sleep(WAIT_SECONDS * tried)
        raise AssertionError("the last try returns or raises")

    def _asked_once(self, start: int, wanted: int) -> bytes:
        # No compression: ranges are of the file's own bytes.
        asked = {"Range": f"bytes={start}-{start + wanted - 1}", "Accept-Encoding": "identity"}
        try:
            response = self._net.urlopen(Request(self._url, headers={**self._headers, **asked}))
        except HTTPError as error:
            if error.status == 416 and start == 0:
                raise NoRanges("an empty file") from error
            raise
        with response:
            told = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if response.status != 206 or not told or int(told[1]) != start:
                if self._size:
                    raise FetchError(f"the server has ceased to serve ranges: HTTP status {response.status}")
                raise NoRanges(f"HTTP status {response.status}")
            last, size = int(told[2]), int(told[3])
            if self._size not in (0, size):
                raise FetchError(f"the file has changed while it was read, from {self._size} to {size} bytes")
            if last != min(start + wanted, size) - 1:
                raise FetchError(f"bytes {start} to {last} came, {start + wanted - 1} was asked for, of {size}")
            content: bytes = response.read(wanted + 1)
        if len(content) != last + 1 - start:
            raise TransportError(f"{len(content)} bytes came instead of {last + 1 - start}")
        self._size = size
        return content


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """FFmpeg went away in the middle of a request, as it may."""


def _handler(video: RemoteVideo, path: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            super().setup()

        def do_GET(self) -> None:
            asked = RANGE.fullmatch(self.headers.get("Range", "bytes=0-"))
            position = int(asked[1]) if asked else 0
            if self.path != path or not asked or position >= video.size:
                self.send_error(404 if self.path != path else 416)
                return
            end = min(int(asked[2]) + 1 if asked[2] else video.size, video.size)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {position}-{end - 1}/{video.size}")
            self.send_header("Content-Length", str(end - position))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Connection", "close")
            self.end_headers()
            self.close_connection = True
            try:
                while position < end:
                    content = video.read(position, min(end - position, SEND_BUFFER_BYTES))
                    self.wfile.write(content)
                    position += len(content)
            except (OSError, ValueError, FetchError):
                pass  # FFmpeg has read enough, the video was closed, or `failure` says what it is

        def log_message(self, *_: object) -> None:
            pass

    return Handler
