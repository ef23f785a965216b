"""A web server on loopback that serves a folder, by ranges or not, and does to chosen answers what nets do."""

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

Fault = Callable[[str, int], str | None]  # of a path and how often this range of it was asked for before
FAULTS = ("stall", "cut", "longer", "shorter", "shifted", "flipped", "unavailable", "nonsense", "gone")


class Net:
    """The server's base URL, what it is to do wrong, and what it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, ""
        self.ranges = True
        self.fault: Fault = lambda path, asked: None
        self.bytes_a_second = 0  # as fast as it goes
        self.connections = 0
        self.asked: Counter[tuple[str, str]] = Counter()  # by path and range
        self.sent: Counter[str] = Counter()  # bytes by path
        self.lock = threading.Lock()


def once(fault: str) -> Fault:
    """Do it to the first answer to each question."""
    return lambda path, asked: fault if asked == 0 else None


@contextmanager
def faulty_net(folder: Path) -> Iterator[Net]:
    """Serve a folder while the block runs."""
    net = Net(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"net": net}))
    server.daemon_threads = True
    net.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield net
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    net: Net
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        with self.net.lock:
            self.net.connections += 1
        super().setup()

    def do_GET(self) -> None:
        with suppress(OSError):
            self._answer()

    def _answer(self) -> None:
        net, path = self.net, unquote(urlsplit(self.path).path).lstrip("/")
        with net.lock:
            asked = net.asked[path, self.headers.get("Range", "")]
            net.asked[path, self.headers.get("Range", "")] += 1
        fault = net.fault(path, asked)
        if fault == "unavailable" or fault == "gone":
            if fault == "gone":
                self.connection.close()
            else:
                self.send_error(503)
            return
        file = net.folder / path
        if not file.is_file():
            self.send_error(404)
            return
        content = file.read_bytes()
        asked_for = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = 0, len(content) - 1
        if net.ranges and asked_for:
            first, last = int(asked_for[1]), min(int(asked_for[2] or last), last)
            if first > last:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        if fault == "shifted":
            first, last = max(first - 1, 0), last - 1
        part = content[first : last + 1]
        if fault == "flipped":
            part = bytes([part[0] ^ 255]) + part[1:] if part else part
        if fault == "nonsense":
            part = b"<html>please sign in</html>"
        self.send_response(206 if net.ranges and asked_for else 200)
        if net.ranges and asked_for:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("ETag", f'"{file.stat().st_mtime_ns}"')
        length = {"longer": len(part) + 100, "shorter": len(part) // 2}.get(fault or "", len(part))
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if fault == "stall":
            self.wfile.write(part[: len(part) // 2])
            time.sleep(3)
        elif fault == "cut":
            self.wfile.write(part[: len(part) // 2])
        else:
            self._send(path, part)
        if fault:
            self.close_connection = True

    def _send(self, path: str, part: bytes) -> None:
        step = 1 << 16 if not self.net.bytes_a_second else max(self.net.bytes_a_second // 20, 1)
        for start in range(0, len(part), step):
            self.wfile.write(part[start : start + step])
            with self.net.lock:
                self.net.sent[path] += len(part[start : start + step])
            if self.net.bytes_a_second:
                time.sleep(0.05)

    def log_message(self, *_: object) -> None:
        pass
