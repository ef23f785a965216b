"""Hostile and broken input through the command: each case ends as its table says, within bounds, and nowhere else."""

import json
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from manifests.lists import read_lists
from tests import hostile

# The command in a process of its own; its peak of memory, and the highest of its children's, in MB; what it made.
MEASURED = """
import resource, sys
from pipeline.cli import main
output, *arguments = sys.argv[1:]
main(["run", "--output", output, *arguments], standalone_mode=False)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print("PEAKS", int(peak.split()[1]) // 1000, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1000)
main(["report", output], standalone_mode=False)
main(["verify", output, "--decode"], standalone_mode=False)
"""
# Far below what the cases would take: gap.mkv took 12,600 before the bounds, one picture of jpeg.avi is 800.
BOUND_MEGABYTES = 1000
QUICK = {"good.mp4", "-i.mp4", "gap-filled.mkv", "gap-cut.mkv", "two-sizes.ts", "long-pixels.mkv", "jpeg.avi"}


@pytest.fixture
def url() -> Iterator[tuple[str, list[str]]]:
    """A server on loopback, and what it has been asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def files_below(folder: Path, output: Path) -> dict[str, tuple[int, int]]:
    """Every file but the output's, with size and time, and every folder."""
    found = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if Path(parent) / name != output]
        found[parent] = (0, 0)
        for name in names:
            state = (Path(parent) / name).lstat()
            found[str(Path(parent) / name)] = (state.st_size, state.st_mtime_ns)
    return found


def prepare(folder: Path) -> tuple[int, int]:
    """Run the command on all lists, look at what it made; gives the peaks of memory in MB: its own, its children's."""
    lists = [folder / name for name in ("videos.csv", "rows.csv", "own.csv")]
    output = folder / "out"
    for name in ("here", "temporary", "home"):
        (folder / name).mkdir()
    environment = {**os.environ, "TMPDIR": str(folder / "temporary"), "HOME": str(folder / "home")}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    before = files_below(folder, output)
    arguments = [output, "--manifest", *lists, "--source", folder / "videos", "--classes", folder / "classes.txt"]
    arguments += ["--flow", "none", "--short-side", hostile.SHORT_SIDE, "--workers", 2]
    command = [sys.executable, "-c", MEASURED, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder / "here", env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "0 problems" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert files_below(folder, output) == before
    own, children = done.stdout.split("PEAKS ")[1].split()[:2]
    return int(own), int(children)


def outcomes(folder: Path) -> dict[str, dict]:
    """The ledger's entry for each row, by `list:line`, with the metadata of what is stored."""
    ledger = [json.loads(line) for line in (folder / "out/ledger/outcomes.jsonl").read_text().splitlines()]
    entries = {entry["key"]: entry for entry in ledger}
    for shard in (folder / "out").glob("shards/*/*.tar"):
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    entries[member.name[:-5]]["rgb"] = json.load(tar.extractfile(member))["rgb"]
    lists = [folder / name for name in ("videos.csv", "rows.csv", "own.csv")]
    listing = read_lists(lists, folder / "videos")
    by_place = {listing.places[clip.key]: entries[clip.key] for clip in listing.clips if clip.key in entries}
    return {**by_place, **{entry["key"]: entry for entry in ledger if entry["list"]}}


def differences(folder: Path, cases: list[hostile.Video]) -> list[str]:
    """Every case that ended in another way than its table says."""
    found, wrong = outcomes(folder), []
    lists = {"videos.csv": cases, "rows.csv": hostile.rows(), "own.csv": hostile.own_rows()}
    for name, expected in lists.items():
        for line, case in enumerate(expected, start=2):
            entry = found[f"{name}:{line}"]
            if entry["reason"] != case.reason or case.message not in entry["message"]:
                wrong.append(f"{case}: {entry['reason']}: {entry['message'][-500:]}")
            elif isinstance(case, hostile.Video) and case.reason is None:
                rgb = entry["rgb"]
                wanted = {"frames": case.frames, "duplicated": case.duplicated, "dropped": case.dropped}
                wanted |= {"width": case.size[0], "height": case.size[1]}
                wrong += [f"{case}: {rgb}" for key, value in wanted.items() if value not in (None, rgb[key])]
    assert len(found) == sum(map(len, lists.values()))
    return wrong


def check(folder: Path, cases: list[hostile.Video], asked: list[str]) -> None:
    hostile.write(folder, cases)
    own, children = prepare(folder)
    assert differences(folder, cases) == []
    assert asked == []
    assert max(own, children) < BOUND_MEGABYTES
    for path in (folder / "out").rglob("*"):
        assert not (path.is_file() and hostile.SECRET.encode() in path.read_bytes()), path
    page = (folder / "out/report.html").read_text()
    assert "<script" not in page
    assert "&lt;script" in page


def test_rows_and_a_few_videos(tmp_path, url):
    base, asked = url
    check(tmp_path, [*(case for case in hostile.videos(base) if case.name in QUICK), *hostile.no_videos(base)], asked)


@pytest.mark.slow
def test_every_case(tmp_path, url):
    base, asked = url
    cases = hostile.videos(base)
    assert len({case.name for case in cases}) == len(cases)
    check(tmp_path, cases, asked)
