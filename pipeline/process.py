"""Child processes with a deadline, a process group of their own, and no life beyond ours."""

import contextlib
import errno
import os
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

# The end of a message names the error; what stands before it is mostly banners.
MESSAGE_BYTES = 4000
# Some files make a tool complain of every picture: what it writes is held in memory, so it may not go on for ever.
MAXIMUM_WRITTEN_BYTES = 64 << 20
READ_BYTES = 1 << 16
NO_SPACE = os.strerror(errno.ENOSPC).encode()
NO_MEMORY = os.strerror(errno.ENOMEM).encode()


class ChildError(Exception):
    """A child process that failed; `message` is the end of what it wrote to its error stream, as it was."""

    def __init__(self, command: str, status: str, message: str) -> None:
        super().__init__(f"{command} {status}: {message}")
        self.command, self.status, self.message = command, status, message


class ChildKilled(ChildError):
    """A child process that somebody killed with SIGKILL: a person, or the kernel when memory ran out."""


class ChildTooLarge(ChildError):
    """A child process that wanted more memory than it may have, or wrote a larger file."""


class ChildTimeout(ChildError):
    """A child process that had not ended by its deadline and was killed, with all that it had started."""


def run_child(
    arguments: Sequence[str],
    *,
    deadline_seconds: float,
    cwd: Path | None = None,
    name: str | None = None,
    memory_bytes: int | None = None,
    file_bytes: int | None = None,
) -> tuple[bytes, str]:
    """Run a program to its end.

    The child leads a process group of its own, which is killed whole at the deadline, and dies with us (on Linux, by
    `setpriv --pdeathsig`): a killed run leaves no process behind that would still write into its folders. Nor does one
    that crashes leave a dump of its memory. Limits hold for each process, where there is `prlimit` (Linux).

    Args:
        arguments: the program and its arguments; no shell sees them.
        deadline_seconds: wall-clock limit.
        cwd: folder to run in.
        name: what errors call it, by default the program's own name.
        memory_bytes: address space that it may have, by default any.
        file_bytes: size that a file it writes may have, by default any.

    Returns:
        What it wrote to its output (bytes) and to its error stream (text).

    Raises:
        ChildTimeout: past the deadline.
        ChildKilled: killed by SIGKILL.
        ChildTooLarge: failed for want of memory, or at the limit of a file's size.
        ChildError: another exit status than 0, ended by another signal, or stopped since it wrote more than
            `MAXIMUM_WRITTEN_BYTES` to its output and its error stream.
        OSError: the child says that the disk is full.
        FileNotFoundError: no such program.
    """
    program = shutil.which(arguments[0])
    if program is None:
        raise FileNotFoundError(f"program {arguments[0]!r} is not installed")
    name = name or Path(program).name
    child = subprocess.Popen(
        [*_with_us(), *_limited(memory_bytes, file_bytes), program, *arguments[1:]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=cwd,
        start_new_session=True,
    )
    output, errors = bytearray(), bytearray()
    try:
        _read_to_the_end(child, output, errors, time.monotonic() + deadline_seconds)
    except subprocess.TimeoutExpired:
        raise ChildTimeout(name, f"still running after {deadline_seconds:g} s", _tail(errors)) from None
    except OverflowError:
        raise ChildError(name, f"wrote more than {MAXIMUM_WRITTEN_BYTES} bytes", _tail(errors)) from None
    finally:
        if child.returncode is None:
            _kill_group(child)
            child.wait()
    if NO_SPACE in errors:
        # The machine's fault and not the input's; some tools say so and end with status 0.
        raise OSError(errno.ENOSPC, f"{name}: {os.strerror(errno.ENOSPC)}")
    if child.returncode == -signal.SIGKILL:
        raise ChildKilled(name, "killed by SIGKILL", _tail(errors))
    if child.returncode == -signal.SIGXFSZ:
        raise ChildTooLarge(name, f"wrote a file of more than {file_bytes} bytes", _tail(errors))
    if child.returncode and memory_bytes is not None and NO_MEMORY in errors:
        raise ChildTooLarge(name, f"wanted more than {memory_bytes} bytes of memory", _tail(errors))
    if child.returncode < 0:
        raise ChildError(name, f"killed by {signal.Signals(-child.returncode).name}", _tail(errors))
    if child.returncode:
        raise ChildError(name, f"ended with status {child.returncode}", _tail(errors))
    return bytes(output), errors.decode(errors="replace")


def _with_us() -> list[str]:
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []


def _limited(memory_bytes: int | None, file_bytes: int | None) -> list[str]:
    prlimit = shutil.which("prlimit")
    limits = {"core": 0, "as": memory_bytes, "fsize": file_bytes}
    return [prlimit, *(f"--{kind}={n}" for kind, n in limits.items() if n is not None), "--"] if prlimit else []


def _read_to_the_end(child: "subprocess.Popen[bytes]", output: bytearray, errors: bytearray, deadline: float) -> None:
    """Wait for a child while reading what it writes.

    Raises:
        TimeoutExpired: not at its end at `deadline`, by the monotonic clock.
        OverflowError: it writes too much.
    """
    assert child.stdout is not None
    assert child.stderr is not None
    with child.stdout, child.stderr, selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ, output)
        selector.register(child.stderr, selectors.EVENT_READ, errors)
        while selector.get_map():
            for key, _ in selector.select(max(0.0, deadline - time.monotonic())):
                read = os.read(key.fd, READ_BYTES)
                key.data.extend(read)
                if not read:
                    selector.unregister(key.fileobj)
            if len(output) + len(errors) > MAXIMUM_WRITTEN_BYTES:
                raise OverflowError
            if time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired(child.args, 0)
    child.wait(max(0.0, deadline - time.monotonic()))


def _kill_group(child: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def _tail(errors: bytearray) -> str:
    return errors[-MESSAGE_BYTES:].decode(errors="replace").strip()
