"""One run at a time on an output folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LEASE = ".lease"


class LeaseHeld(Exception):
    """Another run works on this output."""


@contextmanager
def lease(folder: Path) -> Iterator[None]:
    """Hold the folder's lease while the block runs.

    It is the kernel's lock on an open file: it ends with the process that holds it, however that ends, so a crash never
    blocks the next run. Children do not inherit it.

    Raises:
        LeaseHeld: another process holds it; the message names that process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LEASE).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise LeaseHeld(f"another run (process {holder}) is working on {folder}; wait for it or stop it") from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
