"""`kinetics-prep plan`: what a run would do and cost, and that it leaves nothing behind."""

import json
import math

import pytest
from click.testing import CliRunner

from manifests.index import read_index, read_snapshot
from pipeline.cli import main
from pipeline.estimate import Estimate, Measured

HEADER = "label,youtube_id,time_start,time_end,split\n"


def prep(*arguments, status=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output + repr(result.exception)
    return result.output


def plan(*arguments):
    found = json.loads(prep("plan", *arguments, "--json"))
    parts = sum(found["rejected"].values()) + sum(found["not_due"].values())
    assert found["rows"] == parts + sum(found[name] for name in ("published", "withdrawn", "finished", "due"))
    return found


@pytest.fixture
def arguments(tmp_path, make_video):
    """Three good clips, one that is no video, one that is missing, two bad rows; with flow."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for number, name in enumerate(("AAAAAAAAAAA", "BBBBBBBBBBB", "CCCCCCCCCCC")):
        make_video(videos / f"{name}.mp4", seconds=1 + number)
    (videos / "DDDDDDDDDDD.mp4").write_bytes(b"no video")
    ids = ("AAAAAAAAAAA", "BBBBBBBBBBB", "CCCCCCCCCCC", "DDDDDDDDDDD", "EEEEEEEEEEE", "bad", "AAAAAAAAAAA")
    (tmp_path / "val.csv").write_text(HEADER + "".join(f"yoga,{name},0,1,val\n" for name in ids))
    run = ("--manifest", tmp_path / "val.csv", "--source", videos, "--output", tmp_path / "out")
    return (*run, "--short-side", 32, "--workers", 2)


def files_below(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_plan_says_what_the_run_then_does(tmp_path, arguments):
    before = files_below(tmp_path)
    found = plan(*arguments, "--sample", 100)
    assert files_below(tmp_path) == before
    assert (found["rows"], found["rejected"]) == (7, {"bad-row": 1, "repeated-row": 1})
    assert (found["due"], found["sample"], found["published"]) == (5, 5, 0)
    assert found["sample_failed"] == {"missing": 1, "not-a-video": 1}

    prep("run", *arguments)
    snapshot = read_snapshot(tmp_path / "out")
    records = [record for shard in snapshot.shards for record in read_index(tmp_path / "out", shard)]
    stored = sum(int(record[f"{name}_length"]) for record in records for name in ("rgb", "flow", "json"))
    stored += sum(len(str(record["class_index"])) for record in records)
    assert found["all"]["bytes to store"] == {"mean": pytest.approx(stored), "error": 0}
    sizes = [path.stat().st_size for path in (tmp_path / "videos").iterdir()]
    assert found["all"]["bytes to fetch"] == {"mean": pytest.approx(sum(sizes)), "error": 0}
    assert all(found["all"][f"core-seconds {stage}"]["mean"] > 0 for stage in ("encode", "flow"))

    before = files_below(tmp_path)
    found = plan(*arguments, "--sample", 1)
    assert files_below(tmp_path) == before
    assert (found["published"], found["not_due"], found["due"]) == (3, {"not-a-video": 1}, 1)
    assert plan(*arguments, "--sample", 0, "--retry", "all")["due"] == 2


def test_the_same_clips_are_drawn_again(arguments):
    first, second = (plan(*arguments, "--sample", 2, "--flow", "none") for _ in range(2))
    assert first["all"]["bytes to store"] == second["all"]["bytes to store"]
    assert first["sample"] == 2
    assert first["flow_backend"] is None
    assert first["a_clip"]["core-seconds flow"] == {"mean": 0, "error": 0}


def test_text_for_people(arguments):
    said = prep("plan", *arguments, "--sample", 1, "--cores", 7)
    assert "rejected           2  (bad-row 1, repeated-row 1)" in said
    assert "Measured on 1 of the clips that are due" in said
    assert "± unknown" in said
    assert "wall-clock, 7 cores, 7 at a time" in said
    assert "core-time flow" in said
    assert "Measured" not in prep("plan", *arguments, "--sample", 0)


def test_a_command_line_of_run_is_one_of_plan(arguments):
    assert {option.name for option in main.commands["run"].params} < {o.name for o in main.commands["plan"].params}
    assert plan(*arguments, "--max-failures", 3, "--sample", 0, "--direct_num_workers=3")["due"] == 5
    assert "no such option" in prep("plan", *arguments, "--no-such-option", status=1)


def measured(fetch, encode, flow, cores=1.0):
    seconds = {"fetch": fetch, "encode": encode, "flow": flow}
    return Measured(None, 0, 0, {stage: cores * value for stage, value in seconds.items()}, seconds)


def test_spread_is_that_of_a_sample_without_putting_back():
    found = Estimate(100, "cpu", [])
    mean, error = found.a_clip([1.0, 2.0, 3.0])
    assert mean == 2
    assert error == pytest.approx(1 / math.sqrt(3) * math.sqrt(0.97))
    assert found.a_clip([5.0]) == (5.0, None)
    assert Estimate(3, "cpu", []).a_clip([1.0, 2.0, 3.0]) == (2.0, 0.0)
    assert found.a_clip([5.0]).times(100) == (500.0, None)


def test_what_is_short_decides_the_time():
    slow_source = Estimate(10, "cpu", [measured(fetch=30, encode=2, flow=10, cores=0.5)] * 2)
    assert slow_source.wall_seconds(workers=2, cores=64).mean == 15
    few_workers = Estimate(10, "cpu", [measured(fetch=1, encode=2, flow=10)] * 2)
    assert few_workers.wall_seconds(workers=1, cores=64).mean == 12
    few_cores = Estimate(10, "cpu", [measured(fetch=1, encode=2, flow=10, cores=2)] * 2)
    assert few_cores.wall_seconds(workers=4, cores=2).mean == 13


def test_hours_of_a_gpu_are_said_where_there_is_one():
    sample = [measured(fetch=1, encode=2, flow=10)] * 2
    assert Estimate(10, "cuda", sample).costs()["GPU-seconds flow"].mean == 10
    assert "GPU-seconds flow" not in Estimate(10, "cpu", sample).costs()
