"""kinetics-prep killed, hung, out of space, or replayed: the next run ends with the bytes of an undisturbed one."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass

import pytest
from click.testing import CliRunner

from manifests.index import read_snapshot
from manifests.storage import open_output
from pipeline import lease, steps
from pipeline.cli import main
from tests.crashes import PROGRAM, FailingStorage, Place, SilentServer, counting_flow, serving, wait_for

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
    ranges: bool = False  # whether it serves ranges
    finished: int = 0  # clips to wait for
    spoiled: int = 1  # clips that a killed child spoils


FAST = [
    Moment("fetch", "half of a video is here", "everything", served=HALF, finished=2),
    Moment("encode", "ffmpeg begins its third clip", "parent", "ffmpeg:3", finished=2),
    Moment("flow", "the third clip's is computed, not encoded", "everything", "pipeline.video:tvl1:3:after"),
    Moment("shard", "the index stands, its tar has no name", "everything", "pipeline.shards:name_file:1"),
    Moment("publish", "the snapshot stands, the root does not", "parent", "pipeline.generations:write_file:3"),
]
SLOW = [
    Moment("fetch", "the server is asked", "parent", served=0),
    Moment("fetch", "half of its first range is here", "everything", served=HALF, ranges=True, finished=1),
    Moment("fetch", "half of a video is here", "child", served=HALF),
    Moment("fetch", "downloaded, not encoded", "everything", "pipeline.fetch:_from_url:1:after", served=-1),
    Moment("encode", "ffprobe looks into the first clip", "parent", "ffprobe:1"),
    Moment("encode", "ffmpeg begins its second clip", "everything", "ffmpeg:2", finished=1),
    Moment("encode", "ffmpeg begins its second clip", "child", "ffmpeg:2"),
    Moment("encode", "ffprobe looks into the second clip", "child", "ffprobe:2"),
    Moment("encode", "ffmpeg is asked for its version", "child", "version:1", spoiled=0),
    Moment("encode", "the second clip is encoded, not kept", "everything", "pipeline.steps:encode:2:after"),
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
    (folder / "four.csv").write_text(f"{LIST}yoga,DDDDDDDDDDD,0,1,val\n")
    (folder / "DDDDDDDDDDD.mp4").symlink_to(folder / f"{ALL[0]}.mp4")
    (folder / "two").mkdir()
    for name in (*ALL[:2], "DDDDDDDDDDD"):
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


@pytest.fixture
def silent(videos):
    with serving(SilentServer(videos)) as server:
        yield server
        server.closing.set()


def wait_for_moment(place, moment, run, server):
    if moment.stop:
        place.wait_until_stopped(run)
    elif moment.served and not moment.ranges:
        wait_for(lambda: place.has_begun("video.mp4"))
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
    wait_for(lambda: not (place.processes() or place.is_held()), seconds=60)


@pytest.mark.parametrize(
    "moment",
    [*FAST, *(pytest.param(moment, marks=pytest.mark.slow) for moment in SLOW)],
    ids=lambda moment: f"{moment.stage}: {moment.said} ({moment.victim})",
)
def test_a_killed_run_goes_on_where_it_stood(place, undisturbed, videos, silent, moment, capsys):
    sources = (videos,) if moment.served is None else (videos / "two", "--source", silent.url)
    silent.served, silent.ranges = None if moment.served == -1 else moment.served, moment.ranges
    command = ("run", "--manifest", videos / "list.csv", "--source", *sources, "--output", place.output, *SIZE)
    run = place.start(*command, "--workers", 2, stop=moment.stop)
    wait_for_moment(place, moment, run, silent)
    kill(place, moment, run)

    if moment.victim == "child":
        killed = {"killed": moment.spoiled} if moment.spoiled else {}
        assert totals(place.output) == {"listed": 3, "ok": 3 - moment.spoiled, "failed": killed}
    before = place.finished()
    place.forget_calls()
    silent.served = None
    prep(*command)
    encoded = [ALL[2] if name in ("video", "rgb") else name for name in place.called("ffmpeg")]
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


@pytest.mark.slow
def test_replayed_bundles_compute_no_clip_twice(place, undisturbed, videos):
    command = ("run", "--manifest", videos / "list.csv", "--source", videos, "--output", place.output, *SIZE)
    prep(*command, "--direct_runner_bundle_repeat=2")
    assert place.called("ffmpeg") == place.called("flow") == ALL
    assert shard_bytes(place.output) == shard_bytes(undisturbed)
    assert totals(place.output) == totals(undisturbed)


@pytest.mark.slow
def test_a_tool_that_hangs_costs_one_clip(place, undisturbed, videos, silent):
    """A download, ffprobe and ffmpeg that never end: each has its deadline, and the clip beside them comes out well."""
    silent.served = HALF
    command = ("run", "--manifest", videos / "four.csv", "--source", videos / "two", "--source", silent.url, *SIZE)
    command = (*command, "--output", place.output, "--workers", 2)
    deadlines = {
        "pipeline.fetch:FETCH_DEADLINE_SECONDS": 12.0,
        "pipeline.video:PROBE_DEADLINE_SECONDS": 12.0,
        "pipeline.video:ENCODE_DEADLINE_SECONDS": 12.0,
        "pipeline.video:ENCODE_DEADLINE_PER_SECOND": 0.0,
    }
    run = place.start(*command, stop="ffmpeg:1 ffprobe:2", **deadlines)
    assert run.wait(300) == 0, place.said
    assert not place.processes()
    assert totals(place.output) == {"listed": 4, "ok": 1, "failed": {"timeout": 3}}
    for tool in ("yt-dlp", "ffprobe", "ffmpeg"):
        assert f"{tool} still running after 12 s" in (place.output / "ledger" / "outcomes.jsonl").read_text()
    assert not place.leavings()

    silent.served = None
    place.forget_calls()
    prep(*command)
    assert len(place.called("ffmpeg")) == len(place.called("flow")) == 3
    assert totals(place.output) == {"listed": 4, "ok": 4, "failed": {}}


IN_A_SMALL_DISK = """
mkdir -p "$1" && mount -t tmpfs -o size="$2" tmpfs "$1" || exit 77
output=$1 copies=$3; shift 3
"$@"; echo $? > "$copies/status"
cp -r "$output" "$copies/full"
mount -o remount,size=64m "$output"
"$@" && cp -r "$output" "$copies/roomy"
"""


@pytest.mark.slow
@pytest.mark.parametrize("full_in", ["encode", "shard"])
def test_a_full_disk_stops_the_run_and_spoils_no_clip(place, videos, make_video, full_in):
    """Room for half a clip, or for all clips and not for a shard of them. With room the bytes are those of any run."""
    for name in ALL:
        make_video(place.folder / f"{name}.mp4", "-vf", "noise=alls=40:allf=t", size="320x240", seconds=1)
    command = ("run", "--manifest", videos / "list.csv", "--source", place.folder, "--flow", "none")
    command = (*command, "--short-side", 240, "--workers", 1, "--output")
    prep(*command, place.folder / "fresh")
    clips = [path.stat().st_size for path in (place.folder / "fresh").glob("clips/*/*.tar")]
    size = min(clips) // 2 if full_in == "encode" else sum(clips) + min(clips) * 3 // 2
    copies = place.folder / "copies"
    copies.mkdir()
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", IN_A_SMALL_DISK, "sh"]
    words = [*unshare, place.output, size, copies, PROGRAM, *command, place.output]
    ran = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=300, check=False)
    if not (copies / "status").exists():
        pytest.skip(f"no disk of its own without more rights: {ran.stderr}")
    assert (copies / "status").read_text() == "1\n"
    assert "No space left on device" in ran.stderr
    assert "run the same command again" in ran.stderr
    kept = len(list((copies / "full").glob("clips/*/*[0-9].tar")))
    assert kept == {"encode": 0, "shard": 3}[full_in]
    assert not (copies / "full" / "ledger" / "failures").exists()
    assert totals(copies / "roomy") == {"listed": 3, "ok": 3, "failed": {}}
    assert shard_bytes(copies / "roomy") == shard_bytes(place.folder / "fresh")
    assert not [path for path in (copies / "roomy").rglob("*") if path.suffix == ".partial" or path.name == ".scratch"]


@pytest.mark.slow
@pytest.mark.parametrize(("share", "seed"), [(0.05, 1), (0.5, 3)])
def test_a_storage_that_fails_now_and_then(place, undisturbed, videos, bucket, monkeypatch, capsys, share, seed):
    """The run comes through or stops, loudly; the next one ends with the same shards."""
    output = open_output(f"gs://{bucket.name}/out")
    command = ("run", "--manifest", videos / "list.csv", "--source", videos, "--output", output, *SIZE)
    emulator = os.environ["STORAGE_EMULATOR_HOST"]
    with serving(FailingStorage(emulator.removeprefix("http://"), share, seed)) as storage:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{storage.server_port}")
        run = place.start(*command)
        status = run.wait(500)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator)
    with capsys.disabled():
        print(f"\nstorage: {dict(storage.fates)}: status {status}: {place.said.strip().splitlines()[-1]}")
    assert {"refused", "dropped", "answer dropped"} < storage.fates.keys()
    assert status == 0 or "Error: " in place.said
    wait_for(lambda: not place.processes(), seconds=60)
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.0)
    prep(*command)
    assert totals(output) == totals(undisturbed)
    assert shard_bytes(output) == shard_bytes(undisturbed)
    assert not list(place.temporary.iterdir())


def test_a_lease_whose_answer_was_lost_is_held(bucket, monkeypatch):
    """The library sends the request again, and the storage says that the object is there by now: it is our own."""
    address = os.environ["STORAGE_EMULATOR_HOST"].removeprefix("http://")
    with serving(FailingStorage(address, 0.0, 0)) as storage:
        fates = iter(["carried out", "answer dropped"])
        monkeypatch.setattr(storage, "fate", lambda: next(fates, "carried out"))
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{storage.server_port}")
        output = open_output(f"gs://{bucket.name}/out")
        holder = lease.take(output)
        assert next(fates, None) is None
        lease.require(output, holder)
        with pytest.raises(lease.LeaseHeld):
            lease.take(output)


@pytest.mark.slow
@pytest.mark.parametrize("stop", ["ffmpeg:3", "pipeline.shards:name_file:2", "pipeline.generations:write_file:3"])
def test_a_killed_run_into_a_bucket(place, undisturbed, videos, bucket, monkeypatch, stop):
    """Nothing ends its lease, so for an hour the next run says so; then it goes on where that one stood."""
    output = open_output(f"gs://{bucket.name}/out")
    command = ("run", "--manifest", videos / "list.csv", "--source", videos, "--output", output, *SIZE)
    run = place.start(*command, "--workers", 2, stop=stop)
    place.wait_until_stopped(run)
    place.kill_everything()
    run.wait()
    wait_for(lambda: not place.processes(), seconds=60)
    before = [path.name for path in output.glob("clips/*/*.tar")]
    place.forget_calls()
    assert "its lease ends in 60 minutes" in prep(*command, status=1)
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.0)
    prep(*command)
    assert place.called("ffmpeg") == sorted({*ALL} - {name[:11] for name in before})
    assert place.called("flow") == sorted({*ALL} - {name[:11] for name in before if "rgb" not in name})
    assert totals(output) == totals(undisturbed)
    assert shard_bytes(output) == shard_bytes(undisturbed)
    assert not list(place.temporary.iterdir())
    assert bucket.get_blob("out/.lease").metadata["holder"] == ""
    assert not list(bucket.list_blobs(prefix="out/.scratch"))


@pytest.fixture(scope="module")
def two_generations(tmp_path_factory, videos):
    """A dataset of two runs; and, beside it, the one that a single run makes."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "first.csv").write_text(LIST[: LIST.index(",CCC")])
    run = ("run", "--source", videos, "--flow", "none", *SIZE, "--output")
    for listed in (folder / "first.csv", videos / "four.csv"):
        prep(*run, folder / "out", "--manifest", listed)
    prep(*run, folder / "fresh", "--manifest", videos / "four.csv")
    assert read_snapshot(folder / "out").name == "0002"
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "stop", ["pipeline.shards:write_records:2", "pipeline.generations:publish:1", "pipeline.generations:write_file:3"]
)
def test_a_killed_compaction_is_finished(place, two_generations, stop):
    """Half of the shards, all of them, the snapshot without the root."""
    shutil.copytree(two_generations / "out", place.output)
    run = place.start("compact", place.output, stop=stop)
    place.wait_until_stopped(run)
    run.kill()
    run.wait()
    assert "4 samples, 0 decoded, 0 problems" in prep("verify", place.output)
    prep("compact", place.output)
    assert read_snapshot(place.output).name == "0003"
    assert shard_bytes(place.output) == shard_bytes(two_generations / "fresh")
    assert not place.leavings()
    named = {path for name in ("0001", "0002", "0003") for path in _named(place.output, name)}
    assert {path.relative_to(place.output).as_posix() for path in place.output.glob("shards/*/*")} == named


def _named(dataset, name):
    return {path for shard in read_snapshot(dataset, name).shards for path in (shard.path, shard.index_path)}


@pytest.mark.slow
@pytest.mark.parametrize("by", ["purge", "compact"])
@pytest.mark.parametrize(
    "stop",
    [
        "pipeline.generations:record_withdrawn:1:after",
        "pipeline.shards:name_file:1",
        "pipeline.generations:write_file:3",
        "pipeline.generations:write_file:5",
        "pipeline.generations:record_withdrawal_finished:1",
    ],
)
def test_a_killed_takedown_is_finished(place, two_generations, stop, by):
    """Once it is recorded: by the next command that changes the dataset, whichever that is."""
    key = "AAAAAAAAAAA_000000_000001"
    shutil.copytree(two_generations / "out", place.output)
    shutil.copytree(two_generations / "out", place.folder / "undisturbed")
    prep("purge", place.folder / "undisturbed", key)
    run = place.start("purge", place.output, key, stop=stop)
    place.wait_until_stopped(run)
    run.kill()
    run.wait()
    prep(by, place.output, *([key] if by == "purge" else []))
    if by == "compact":
        prep("compact", place.folder / "undisturbed")
    assert "3 samples, 3 decoded, 0 problems" in prep("verify", place.output, "--decode")
    assert totals(place.output) == {"listed": 4, "ok": 3, "failed": {"withdrawn": 1}}
    assert shard_bytes(place.output) == shard_bytes(place.folder / "undisturbed")
    assert not place.leavings()
    holding = [path for path in place.output.rglob("*") if path.is_file() and key.encode() in path.read_bytes()]
    assert [path.name for path in holding] == ["outcomes.jsonl"]
