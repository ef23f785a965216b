"""One run at a time on an output: the kernel's lock for a folder, an object with an expiry for a bucket.

In a bucket nothing ends with the process that made it. So the lease is an object that its holder writes anew while it
works, and that counts for nothing an hour after it was last written. Each write names the generation that it replaces:
of two that take an expired lease, one fails. A run that has lost its lease must not publish, and asks before it does.
"""

import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from google.api_core.exceptions import GoogleAPIError, NotFound, PreconditionFailed
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import GoogleAuthError
from google.cloud import storage

from manifests.files import in_bucket
from manifests.lease import LEASE, LeaseHeld, lease

LEASE_SECONDS = 3600.0
RENEW_SECONDS = 300.0
HOLDER, ENDED = "holder", "ended"
ABSENT = 0  # the generation of an object that does not exist

_renewing = threading.Lock()
_renewed: dict[str, float] = {}  # of this process: when a holder's lease was last written, by the monotonic clock


class LeaseLost(RuntimeError):
    """Another run has taken over the output: this one was silent for too long."""


@dataclass
class Held:
    """A lease that is held. `handed_over`: by a job elsewhere, from now on, which will end it."""

    holder: str | None = None  # for `renew` and `release` in other processes; a folder's lock needs neither
    handed_over: bool = False


@contextmanager
def run_lease(output: Path) -> Iterator[Held]:
    """Hold the lease on an output while the block runs, or until the job ends that it is handed over to.

    Raises:
        LeaseHeld: another run holds it; the message names it.
    """
    if not in_bucket(output):
        with lease(output):
            yield Held()
        return
    held, through = Held(take(output)), threading.Event()

    def keep() -> None:
        while not through.wait(RENEW_SECONDS) and not held.handed_over:
            with suppress(LeaseLost):  # the step that is to publish will say so
                renew(output, held.holder)

    threading.Thread(target=keep, daemon=True).start()
    try:
        yield held
    finally:
        through.set()
        if not held.handed_over:
            release(output, held.holder)


def take(output: Path) -> str:
    """Take the lease on an output in a bucket. Gives the holder's name.

    Raises:
        LeaseHeld: another run holds it.
        OSError: no such bucket, or nobody who may write there.
    """
    try:
        return _take(output)
    except (GoogleAPIError, GoogleAuthError) as error:
        raise OSError(f"{output}: the bucket cannot be used: {error}") from error


def _take(output: Path) -> str:
    blob = _blob(output)
    holder = f"process {os.getpid()} on {socket.gethostname()}, {secrets.token_hex(4)}"
    generation, found, age_seconds = _look(blob)
    if found and age_seconds < LEASE_SECONDS:
        minutes = (LEASE_SECONDS - age_seconds) / 60
        raise LeaseHeld(
            f"another run ({found}) is working on {output}; wait for it. "
            f"If it was killed, its lease ends in {minutes:.0f} minutes"
        )
    try:
        _write(blob, holder, generation)
    except PreconditionFailed:
        if _look(blob)[1] != holder:  # else it was written, only the answer was lost and it was sent again
            raise LeaseHeld(f"another run has just taken {output}") from None
    return holder


def renew(output: Path, holder: str | None) -> None:
    """Write the lease anew, at most every few minutes; called from whatever works. Raises `LeaseLost`."""
    with _renewing:
        if holder is None or time.monotonic() < _renewed.get(holder, -RENEW_SECONDS) + RENEW_SECONDS:
            return
        blob = _blob(output)
        generation = _require(blob, output, holder)
        try:
            _write(blob, holder, generation)
        except PreconditionFailed:
            _require(blob, output, holder)  # another worker of the same run was faster
        _renewed[holder] = time.monotonic()


def require(output: Path, holder: str | None) -> None:
    """Raise `LeaseLost` unless the holder still holds the lease."""
    if holder is not None:
        _require(_blob(output), output, holder)


def release(output: Path, holder: str | None) -> None:
    """End the lease, if the holder has it still. What is left of it says whose it was."""
    if holder is None:
        return
    blob = _blob(output)
    generation, found, _ = _look(blob)
    if found == holder:
        with suppress(PreconditionFailed):  # another has it by now
            _write(blob, "", generation, ended=holder)


def has_ended(output: Path, holder: str | None) -> bool:
    """Whether the lease of this holder was released, and nobody has taken it since."""
    if holder is None:
        return False
    blob = _blob(output)
    _, found, _ = _look(blob)
    return not found and (blob.metadata or {}).get(ENDED) == holder


def _require(blob: storage.Blob, output: Path, holder: str) -> int:
    generation, found, _ = _look(blob)
    if found != holder:
        raise LeaseLost(f"{output}: this run's lease ended, {found or 'nobody'} has it now; nothing is published")
    return generation


def _look(blob: storage.Blob) -> tuple[int, str, float]:
    """Generation, holder and age in seconds of the lease there is; `ABSENT` where there is none."""
    try:
        blob.reload()
    except NotFound:
        return ABSENT, "", 0.0
    holder = (blob.metadata or {}).get(HOLDER, "")
    return blob.generation, holder, (datetime.now(UTC) - blob.updated).total_seconds()


def _write(blob: storage.Blob, holder: str, generation: int, *, ended: str = "") -> None:
    blob.metadata = {
        HOLDER: holder,
        ENDED: ended,
    }  # of the object itself, so that one request reads it together with the generation
    blob.upload_from_string(b"", if_generation_match=generation)


def _blob(output: Path) -> storage.Blob:
    bucket, _, name = output.path.partition("/")  # type: ignore[attr-defined]
    if "STORAGE_EMULATOR_HOST" in os.environ:
        client = storage.Client(project="emulated", credentials=AnonymousCredentials())  # type: ignore[no-untyped-call]
    else:
        client = storage.Client()
    return client.bucket(bucket).blob(f"{name}/{LEASE}")
