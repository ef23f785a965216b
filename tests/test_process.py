"""Children end: by themselves, by their deadline, or with us."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import process
from pipeline.process import ChildError, ChildKilled, ChildTimeout, ChildTooLarge, run_child


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_output_and_errors_come_back(tmp_path):
    output, errors = run_child(["sh", "-c", "pwd; echo no >&2"], deadline_seconds=60, cwd=tmp_path)
    assert output.decode().strip() == str(tmp_path)
    assert errors == "no\n"


def test_a_failure_carries_the_raw_message():
    with pytest.raises(ChildError, match=r"sh ended with status 3: broken \$HOME") as caught:
        run_child(["sh", "-c", "echo 'broken $HOME' >&2; exit 3"], deadline_seconds=60)
    assert caught.value.message == "broken $HOME"
    with pytest.raises(ChildError, match="killed by SIGSEGV"):
        run_child(["sh", "-c", "kill -SEGV $$"], deadline_seconds=60)


def test_long_messages_keep_their_end():
    with pytest.raises(ChildError) as caught:
        run_child(["sh", "-c", "yes banner | head -c 100000 >&2; echo the point >&2; exit 1"], deadline_seconds=60)
    assert len(caught.value.message) < 5000
    assert caught.value.message.endswith("the point")


def test_the_deadline_kills_all_that_the_child_started():
    started = time.monotonic()
    with pytest.raises(ChildTimeout, match="still running after 3 s") as caught:
        run_child(["sh", "-c", "sleep 60 & echo $! >&2; sleep 60"], deadline_seconds=3)
    assert time.monotonic() - started < 30
    grandchild = int(caught.value.message)
    for _ in range(1200):
        if not alive(grandchild):
            break
        time.sleep(0.05)
    assert not alive(grandchild)


def test_a_full_disk_is_not_the_inputs_fault():
    """Whatever the status: some tools say that the disk is full and end well."""
    for status in (0, 1):
        with pytest.raises(OSError, match="No space left on device"):
            run_child(["sh", "-c", f"echo 'av_write: No space left on device' >&2; exit {status}"], deadline_seconds=60)


def test_what_a_child_may_take(tmp_path, monkeypatch):
    hungry = [sys.executable, "-c", "import mmap; mmap.mmap(-1, 1 << 30)"]
    assert run_child(hungry, deadline_seconds=60) == (b"", "")
    with pytest.raises(
        ChildTooLarge, match=r"wanted more than 536870912 bytes of memory: (?s:.*)Cannot allocate memory"
    ):
        run_child(hungry, deadline_seconds=60, memory_bytes=1 << 29)
    writing = ["dd", "if=/dev/zero", "of=out", "bs=9999", "count=1000"]
    with pytest.raises(ChildTooLarge, match="dd wrote a file of more than 1000000 bytes"):
        run_child(writing, deadline_seconds=60, cwd=tmp_path, file_bytes=10**6)
    assert (tmp_path / "out").stat().st_size == 10**6
    monkeypatch.setattr(process, "MAXIMUM_WRITTEN_BYTES", 10**6)
    with pytest.raises(ChildError, match="yes wrote more than 1000000 bytes"):
        run_child(["yes"], deadline_seconds=60)


def test_the_deadline_holds_for_a_child_that_never_stops_writing(monkeypatch):
    monkeypatch.setattr(process, "MAXIMUM_WRITTEN_BYTES", 1 << 50)
    with pytest.raises(ChildTimeout):
        run_child(["sh", "-c", "while sleep .01; do echo x; done"], deadline_seconds=0.5)
    with pytest.raises(ChildTimeout):
        run_child(["sh", "-c", "exec >&- 2>&-; sleep 60"], deadline_seconds=0.5)


def test_a_crash_leaves_no_dump(tmp_path):
    _, errors = run_child(["sh", "-c", "ulimit -Hc >&2"], deadline_seconds=60, cwd=tmp_path)
    assert errors == "0\n"


def test_killed_by_somebody():
    with pytest.raises(ChildKilled, match="sh killed by SIGKILL"):
        run_child(["sh", "-c", "kill -KILL $$"], deadline_seconds=60)


def test_no_such_program():
    with pytest.raises(FileNotFoundError, match="'no-such-program' is not installed"):
        run_child(["no-such-program"], deadline_seconds=1)


def test_children_die_with_us(tmp_path):
    """The parent is killed outright: no Python code of it runs any more, and its child ends all the same."""
    child_command = ["sh", "-c", "echo $$ > pid; sleep 60"]
    code = f"from pipeline.process import run_child; run_child({child_command}, deadline_seconds=99)"
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    pid = tmp_path / "pid"
    deadline = time.monotonic() + 60
    while not (pid.exists() and pid.read_text().strip()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child = int(pid.read_text())
    assert alive(child)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 60
    while alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.02)
