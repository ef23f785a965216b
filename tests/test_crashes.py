"""kinetics-prep killed, hung, out of space, or replayed: the next run ends with the bytes of an undisturbed one."""

import json
import os
import signal
import tempfile
import threading
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from manifests.index import read_snapshot
from pipeline import steps
from pipeline.cli import main
from tests.crashes import Place, counting_flow, wait_for

LIST = (
    "label,youtube_id,time_start,time_end,split\n"
    "yoga,AAAAAAAAAAA,0,1,val\nzumba,BBBBBBBBBBB,0,1,val\n,CCCCCCCCCCC,0,1,test\n"
)
ALL = ["AAAAAAAAAAA", "BBBBBBBBBBB", "CCCCCCCCCCC"]
SIZE = ("--short-side", 32)
HALF = 14_000  # bytes of the third video; yt-dlp writes them down in blocks of 8192


@dataclass(frozen=True)
class Moment:
    """Where a run is killed, and who is: "parent", "child" or "everything"."""

    stage: str
    said: str
    victim: str
    stop: str = ""  # see tests/crashes.py
    served: int | None = None  # bytes of the third video that the server gives before it falls silent
    finished: int = 0  # clips to wait for


FAST = [
    Moment("fetch", "half of a video is here", "everything", served=HALF, finished=2),
    Moment("encode", "ffmpeg begins its third clip", "parent", "ffmpeg:3", finished=2),
    Moment("flow", "the third clip's is computed, not encoded", "everything", "pipeline.video:tvl1:3:after"),
    Moment("shard", "the index stands, its tar has no name", "everything", "pipeline.shards:name_file:1"),
    Moment("publish", "the snapshot stands, the root does not", "parent", "pipeline.generations:write_file:3"),
]
SLOW = [
    Moment("fetch", "the server is asked", "parent", served=0),
    Moment("fetch", "half of a video is here", "child", served=HALF),
    Moment("fetch", "downloaded, not encoded", "everything", "pipeline.fetch:_download:1:after", served=-1),
    Moment("encode", "ffprobe looks into the first clip", "parent", "ffprobe:1"),
    Moment("encode", "ffmpeg begins its second clip", "everything", "ffmpeg:2", finished=1),
    Moment("encode", "ffmpeg begins its second clip", "child", "ffmpeg:2"),
    Moment("encode", "ffprobe looks into the second clip", "child", "ffprobe:2"),
    Moment("encode", "the second clip is encoded, not kept", "everything", "pipeline.steps:_encode:2:after"),
    Moment("encode", "the second clip is written, not named", "parent", "pipeline.shards:write_sample:2:after"),
    Moment("flow", "before the first", "everything", "pipeline.steps:add_flow:1"),
    Moment("flow", "the third is computed, not kept", "parent", "pipeline.steps:add_flow:3:after"),
    Moment("flow", "two clips have theirs, the third is encoded", "child", "ffmpeg:3", finished=2),
    Moment("shard", "one of two stands", "parent", "pipeline.steps:write_shard:2"),
    Moment("shard", "its tar is written, not indexed", "everything", "pipeline.shards:index_tar:4"),
    Moment("shard", "both stand", "everything", "pipeline.steps:write_shard:2:after"),
    Moment("publish", "before the ledger", "parent", "pipeline.steps:record_outcomes:1"),
    Moment("publish", "the ledger is written", "everything", "pipeline.steps:publish:1"),
    Moment("publish", "half of the snapshot", "everything", "pipeline.generations:write_file:2"),
    Moment("publish", "the root stands, the lease is held", "everything", "pipeline.steps:remove_folder:1"),
]


def prep(*arguments, status=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output + repr(result.exception)
    return result.output


def totals(dataset):
    return json.loads(prep("status", dataset, "--json"))


def reasons(dataset):
    entries = map(json.loads, (dataset / "ledger" / "outcomes.jsonl").read_text().splitlines())
    return {entry["key"][:11]: entry["reason"] for entry in entries}


def shard_bytes(dataset):
    """The shards of the current snapshot and their indexes."""
    paths = [path for shard in read_snapshot(dataset).shards for path in (shard.path, shard.index_path)]
    return {path: (dataset / path).read_bytes() for path in paths}


@pytest.fixture(scope="module")
def videos(tmp_path_factory, make_video):
    folder = tmp_path_factory.mktemp("videos")
    for name, rate, size in zip(ALL, ("25", "30", "15"), ("64x48", "64x48", "320x240"), strict=True):
        make_video(folder / f"{name}.mp4", size=size, rate=rate, seconds=1)
    assert (folder / f"{ALL[2]}.mp4").stat().st_size > 2 * HALF
    (folder / "list.csv").write_text(LIST)
    (folder / "two").mkdir()
    for name in ALL[:2]:
        (folder / "two" / f"{name}.mp4").symlink_to(folder / f"{name}.mp4")
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where a run is to be disturbed; what runs in this process is counted there, too."""
    made = Place(tmp_path / "place")
    monkeypatch.setenv("PATH", made.path)
    monkeypatch.setattr(tempfile, "tempdir", str(made.temporary))
    monkeypatch.setattr(steps, "add_flow", counting_flow(made.calls, steps.add_flow))
    yield made
    made.kill_everything()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, videos):
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    prep("run", "--manifest", videos / "list.csv", "--source", videos, "--output", output, *SIZE)
    return output


class SilentServer(ThreadingHTTPServer):
    """Serves a folder; while `served` is a number, it gives so many bytes of a file and no more, without an end."""

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.served, self.asked, self.closing = folder, None, threading.Event(), threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/{{youtube_id}}.mp4"


class _Handler(SimpleHTTPRequestHandler):
    def do_GET(self):
        content = (self.server.folder / Path(self.path).name).read_bytes()
        self.server.asked.set()
        if self.server.served == 0:
            self.server.closing.wait()
            return
        self.send_response(200)
        self.send_header("Content-Type", "video/mp4")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: self.server.served])
        self.wfile.flush()
        if self.server.served is not None:
            self.server.closing.wait()

    def log_message(self, format, *arguments):
        pass


@pytest.fixture
def silent(videos):
    server = SilentServer(videos)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()


def wait_for_moment(place, moment, server):
    if moment.stop:
        wait_for(place.stopped)
    elif moment.served:
        wait_for(lambda: any(path.stat().st_size for path in place.output.glob(".scratch/*/download/*/video.mp4")))
    else:
        wait_for(server.asked.is_set)
    wait_for(lambda: len([name for name in place.finished() if "rgb" not in name]) >= moment.finished)


def kill(place, moment, run):
    """Kill, and wait until nothing is left, or until the run has gone on to its end without the child."""
    if moment.victim == "everything":
        place.kill_everything()
    elif moment.victim == "parent":
        run.kill()
    else:
        downloads = [process for process, command in place.processes().items() if "yt_dlp" in command]
        (child,) = place.stopped() or downloads
        os.kill(child, signal.SIGKILL)
        assert run.wait(180) == 0, place.said
    run.wait()
    wait_for(lambda: not place.processes(), seconds=5)


@pytest.mark.parametrize(
    "moment",
    [*FAST, *(pytest.param(moment, marks=pytest.mark.slow) for moment in SLOW)],
    ids=lambda moment: f"{moment.stage}: {moment.said} ({moment.victim})",
)
def test_a_killed_run_goes_on_where_it_stood(place, undisturbed, videos, silent, moment, capsys):
    sources = (videos,) if moment.served is None else (videos / "two", "--source", silent.url)
    silent.served = None if moment.served == -1 else moment.served
    command = ("run", "--manifest", videos / "list.csv", "--source", *sources, "--output", place.output, *SIZE)
    run = place.start(*command, "--workers", 2, stop=moment.stop)
    wait_for_moment(place, moment, silent)
    kill(place, moment, run)

    if moment.victim == "child":
        assert sorted(map(str, reasons(place.output).values())) == ["None", "None", "killed"]
    before = place.finished()
    place.forget_calls()
    silent.served = None
    prep(*command)
    encoded = ["CCCCCCCCCCC" if name == "video" else name for name in place.called("ffmpeg")]
    computed = place.called("flow")
    with capsys.disabled():
        done = len([name for name in before if "rgb" not in name])
        print(
            f"\n{moment.stage:8} {moment.said:50} {moment.victim:11} before: {len(before)} encoded, {done} finished; "
            f"after: {len(encoded)} ffmpeg, {len(computed)} flow"
        )

    assert encoded == sorted({*ALL} - {name[:11] for name in before})
    assert computed == sorted({*ALL} - {name[:11] for name in before if "rgb" not in name})
    assert place.finished().items() >= {name: before[name] for name in before if "rgb" not in name}.items()
    assert totals(place.output) == totals(undisturbed) == {"listed": 3, "ok": 3, "failed": {}}
    if moment.victim == "child":
        prep("compact", place.output)  # the killed clip came a generation later
    assert shard_bytes(place.output) == shard_bytes(undisturbed)
    assert not place.leavings()
    assert not place.processes()
    assert "3 decoded, 0 problems" in prep("verify", place.output, "--decode")
