"""This project's programs, run one after another as a user would type them."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click


class ProgramFailed(Exception):
    """A program ended with an error, which it has told itself."""


def run_program(words: Sequence[str]) -> None:
    """Print a command and run it to its end; its output goes where ours does.

    It may take days, so it has no deadline. SIGINT and SIGTERM are handed on to it and it is waited for, so that a
    training is saved; it dies with us (on Linux, by `setpriv --pdeathsig`), with SIGTERM, and so is saved as well.

    Args:
        words: the program and its arguments; no shell sees them. Programs that were installed beside this Python are
            found without a PATH.

    Raises:
        ProgramFailed: it ended with another status than 0.
        FileNotFoundError: there is no such program.
        KeyboardInterrupt: a signal came, and the program has ended.
    """
    click.echo(f"$ {shlex.join(words)}")
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    program = shutil.which(words[0], path=path)
    if program is None:
        raise FileNotFoundError(f"program {words[0]!r} is not installed")
    setpriv = shutil.which("setpriv")
    with_us = [setpriv, "--pdeathsig", "TERM", "--"] if setpriv is not None else []
    noted: list[int] = []
    # A session of its own: a terminal's Ctrl-C would reach it a second time, and the second one saves nothing.
    child = subprocess.Popen(
        [*with_us, program, *words[1:]],
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )

    def hand_on(number: int, _: object) -> None:
        noted.append(number)
        child.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        status = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if noted:
        raise KeyboardInterrupt
    if status:
        told = f"status {status}" if status > 0 else signal.Signals(-status).name
        raise ProgramFailed(f"{words[0]} ended with {told}; what it says is above")
