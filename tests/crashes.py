"""kinetics-prep in a process that stops at a chosen moment, its work counted; this file is also that program.

A moment is `module:function:call`, where the process stops just before that call, or with `:after` behind it, just
after it; or `ffmpeg:call`, `ffprobe:call`, where that child stops instead, and `version:call`, where
ffmpeg is asked for its version.
"""

import contextlib
import fcntl
import functools
import http.client
import importlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TOLD = "CRASH"  # the environment variable that says where calls are noted, where to stop, and which constants differ
ROOT = Path(__file__).parents[1]
PROGRAM = Path(sys.executable).with_name("kinetics-prep")
VIDEO = re.compile(r"file:\S*?(\w+)\.mp4|^(\w{11})_\d{6}_")  # the first file of a command, or a key
WRAPPER = """#!/bin/sh
name={name} number=1
test "$1" = -version && name=version
until mkdir "{calls}/$name-$number" 2>/dev/null; do number=$((number + 1)); done
echo "$*" > "{calls}/$name-$number/arguments"
case " $STOP " in *" $name:$number "*) echo $$ > "{calls}/stopped-$name"; kill -STOP $$ ;; esac
exec {program} "$@"
"""


class Place:
    """A folder with an output, a folder for temporary files, programs that note that they are called, and the notes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output, self.calls, self.temporary, self.programs = (
            folder / name for name in ("out", "calls", "temporary", "programs")
        )
        for made in (self.calls, self.temporary, self.programs):
            made.mkdir(parents=True)
        for name in ("ffmpeg", "ffprobe"):
            wrapper = WRAPPER.format(calls=self.calls, name=name, program=shutil.which(name))
            (self.programs / name).write_text(wrapper)
            (self.programs / name).chmod(0o755)

    @property
    def path(self) -> str:
        """PATH with the programs of this place first."""
        return f"{self.programs}:{os.environ['PATH']}"

    def start(self, *arguments: object, stop: str = "", **constants: float) -> "subprocess.Popen[str]":
        """Start kinetics-prep, as it is installed or, with a moment in Python or other constants, by this file."""
        in_python = stop.startswith("pipeline.")
        told = {"calls": str(self.calls), "stop": stop if in_python else "", "constants": constants}
        environment = {**os.environ, "PATH": self.path, "TMPDIR": str(self.temporary), "PYTHONPATH": str(ROOT)}
        environment |= {TOLD: json.dumps(told), "STOP": stop}
        program = [sys.executable, __file__] if in_python or constants else [PROGRAM]
        with (self.folder / "said.txt").open("w") as said:
            return subprocess.Popen([*program, *map(str, arguments)], env=environment, stdout=said, stderr=said)

    @property
    def said(self) -> str:
        """What the process that was started last has written."""
        return (self.folder / "said.txt").read_text()

    def stopped(self) -> list[int]:
        """Processes that have come to their moment."""
        return [int(text) for path in self.calls.glob("stopped-*") if (text := path.read_text())]

    def called(self, name: str) -> list[str]:
        """The videos that a program, or "flow", was called for; of one on the net "video", or "rgb" as it is stored."""
        notes = (path.read_text() for path in self.calls.glob(f"{name}-*/arguments"))
        found = (VIDEO.search(note) for note in notes)
        return sorted(match[1] or match[2] for match in found if match)

    def wait_until_stopped(self, run: "subprocess.Popen[str]") -> None:
        """Wait until a process has come to its moment; the run must not end before."""

        def stopped() -> list[int]:
            assert run.poll() is None, self.said
            return self.stopped()

        wait_for(stopped)

    def forget_calls(self) -> None:
        shutil.rmtree(self.calls)
        self.calls.mkdir()

    def processes(self) -> dict[int, str]:
        """Command lines of the processes that were started here, by themselves or by others that were."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                environment, command = (entry / "environ").read_bytes(), (entry / "cmdline").read_bytes()
                state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
            except OSError:
                continue
            ours = str(self.folder).encode() in environment + command
            if ours and state != "Z" and int(entry.name) != os.getpid():
                found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace")
        return found

    def is_held(self) -> bool:
        """Whether a process still has the lease: one that is ending has no command line any more, but its files."""
        with (self.output / ".lease").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def kill_everything(self) -> None:
        for process in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def finished(self) -> dict[str, tuple[int, int]]:
        """Finished clips by their names, which end in .rgb.tar where the flow is missing: inode and time."""
        found = {}
        for path in self.output.glob("clips/*/[!.]*.tar"):
            with contextlib.suppress(FileNotFoundError):  # one that waited for its flow goes when it has it
                stat = path.stat()
                found[path.name] = stat.st_ino, stat.st_mtime_ns
        return found

    def has_begun(self, name: str) -> bool:
        """Whether a temporary file of that name holds something; folders may come and go while they are looked at."""
        scratch = os.walk(self.output / ".scratch")
        found = (Path(folder, name) for folder, _, names in scratch if name in names)
        with contextlib.suppress(FileNotFoundError):
            return any(path.stat().st_size for path in found)
        return False

    def leavings(self) -> list[Path]:
        """Temporary files and folders that should have gone."""
        files = [path for path in self.output.rglob("*") if path.suffix == ".partial" or path.name == ".scratch"]
        return [*files, *self.temporary.iterdir(), *self.output.glob("ledger/notes")]


def wait_for(condition: Callable[[], object], seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "never came"
        time.sleep(0.02)


class SilentServer(ThreadingHTTPServer):
    """Serves a folder; while `served` is a number, it gives so many bytes of a file and then falls silent."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _SilentHandler)
        self.folder, self.served, self.asked, self.closing = folder, None, threading.Event(), threading.Event()
        self.ranges = False
        self.url = f"http://127.0.0.1:{self.server_port}/{{youtube_id}}.mp4"


class _SilentHandler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        content, served = (self.server.folder / Path(self.path).name).read_bytes(), self.server.served
        self.server.asked.set()
        if served == 0:
            self.server.closing.wait()
            return
        self.send_response(206 if self.server.ranges else 200)
        if self.server.ranges:  # it is asked for more than there is
            self.send_header("Content-Range", f"bytes 0-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Type", "video/mp4")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:served])
        self.wfile.flush()
        if served is not None:
            self.server.closing.wait()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


class FailingStorage(ThreadingHTTPServer):
    """Stands before a Google Storage and fails a share of the requests.

    It refuses them, drops them, or carries them out and drops the answer.
    """

    def __init__(self, address: str, share: float, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), _FailingHandler)
        self.address, self.share, self.random, self.fates = address, share, random.Random(seed), Counter[str]()
        self.lock = threading.Lock()

    def fate(self) -> str:
        with self.lock:
            fails = self.random.random() < self.share
            fate = self.random.choice(("refused", "dropped", "answer dropped")) if fails else "carried out"
            self.fates[fate] += 1
        return fate


class _FailingHandler(BaseHTTPRequestHandler):
    def forward(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fate = self.server.fate()
        if fate == "refused":
            self.send_error(503)
        if fate in ("refused", "dropped"):
            return
        connection = http.client.HTTPConnection(self.server.address, timeout=60)
        passed_on = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
        connection.request(self.command, self.path, content, passed_on)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        if fate == "answer dropped":
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "content-length", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = forward

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[ThreadingHTTPServer]:
    """Answer requests while the block runs."""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def note_call(calls: Path, name: str, arguments: str) -> int:
    """Count a call. Gives its number."""
    number = 1
    while True:
        try:
            (calls / f"{name}-{number}").mkdir()
        except FileExistsError:
            number += 1
        else:
            (calls / f"{name}-{number}" / "arguments").write_text(arguments)
            return number


def counting_flow(calls: Path, add_flow: Callable) -> Callable:
    """`pipeline.steps.add_flow`, each call of which is noted."""

    def counted(members, *arguments):
        note_call(calls, "flow", json.loads(members["json"])["key"])
        return add_flow(members, *arguments)

    return counted


def _stopping(calls: Path, name: str, call: int, after: bool, function: Callable) -> Callable:
    @functools.wraps(function)
    def stops(*arguments, **options):
        number = note_call(calls, f"moment-{name}", "")
        result = function(*arguments, **options) if after else None
        if number == call:
            (calls / "stopped-python").write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)  # all its threads
        return result if after else function(*arguments, **options)

    return stops


def main() -> None:
    """Run kinetics-prep as the environment tells."""
    told = json.loads(os.environ[TOLD])
    calls = Path(told["calls"])
    from pipeline import cli, steps

    steps.add_flow = counting_flow(calls, steps.add_flow)
    for place, value in told["constants"].items():
        module, _, name = place.partition(":")
        setattr(importlib.import_module(module), name, value)
    if told["stop"]:
        module_name, name, call, *after = told["stop"].split(":")
        module = importlib.import_module(module_name)
        setattr(module, name, _stopping(calls, name, int(call), after == ["after"], getattr(module, name)))
    cli.main()


if __name__ == "__main__":
    main()
