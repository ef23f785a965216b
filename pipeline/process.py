"""Child processes with a deadline, a process group of their own, and no life beyond ours."""

import contextlib
import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

# The end of a message names the error; what stands before it is mostly banners.
MESSAGE_BYTES = 4000
NO_SPACE = os.strerror(errno.ENOSPC).encode()


class ChildError(Exception):
    """A child process that failed; `message` is the end of what it wrote to its error stream, as it was."""

    def __init__(self, command: str, status: str, message: str) -> None:
        super().__init__(f"{command} {status}: {message}")
        self.command, self.status, self.message = command, status, message


class ChildKilled(ChildError):
    """A child process that somebody killed with SIGKILL: a person, or the kernel when memory ran out."""


class ChildTimeout(ChildError):
    """A child process that had not ended by its deadline and was killed, with all that it had started."""


def run_child(
    arguments: Sequence[str], *, deadline_seconds: float, cwd: Path | None = None, name: str | None = None
) -> tuple[bytes, str]:
    """Run a program to its end.

    The child leads a process group of its own, which is killed whole at the deadline, and dies with us (on Linux, by
    `setpriv --pdeathsig`): a killed run leaves no process behind that would still write into its folders.

    Args:
        arguments: the program and its arguments; no shell sees them.
        deadline_seconds: wall-clock limit.
        cwd: folder to run in.
        name: what errors call it, by default the program's own name.

    Returns:
        What it wrote to its output (bytes) and to its error stream (text).

    Raises:
        ChildTimeout: past the deadline.
        ChildKilled: killed by SIGKILL.
        ChildError: another exit status than 0, or ended by another signal.
        OSError: the child says that the disk is full.
        FileNotFoundError: no such program.
    """
    program = shutil.which(arguments[0])
    if program is None:
        raise FileNotFoundError(f"program {arguments[0]!r} is not installed")
    name = name or Path(program).name
    setpriv = shutil.which("setpriv")
    prefix = [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []
    child = subprocess.Popen(
        [*prefix, program, *arguments[1:]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=cwd,
        start_new_session=True,
    )
    try:
        output, errors = child.communicate(timeout=deadline_seconds)
    except subprocess.TimeoutExpired:
        _kill_group(child)
        _, errors = child.communicate()
        raise ChildTimeout(name, f"still running after {deadline_seconds:g} s", _tail(errors)) from None
    except BaseException:
        _kill_group(child)
        child.wait()
        raise
    if NO_SPACE in errors:
        # The machine's fault and not the input's; some tools say so and end with status 0.
        raise OSError(errno.ENOSPC, f"{name}: {os.strerror(errno.ENOSPC)}")
    if child.returncode == -signal.SIGKILL:
        raise ChildKilled(name, "killed by SIGKILL", _tail(errors))
    if child.returncode < 0:
        raise ChildError(name, f"killed by {signal.Signals(-child.returncode).name}", _tail(errors))
    if child.returncode:
        raise ChildError(name, f"ended with status {child.returncode}", _tail(errors))
    return output, errors.decode(errors="replace")


def _kill_group(child: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def _tail(errors: bytes) -> str:
    return errors[-MESSAGE_BYTES:].decode(errors="replace").strip()
