"""kinetics-prep with lists, sources and outputs in buckets, and one run at a time there."""

import json

import pytest
from click.testing import CliRunner

from manifests.storage import open_output, open_path
from pipeline import lease
from pipeline.cli import main
from pipeline.lease import LeaseHeld, LeaseLost

LIST = "label,youtube_id,time_start,time_end,split\nyoga,AAAAAAAAAAA,0,1,val\nzumba,BBBBBBBBBBB,0,1,val\n"


def prep(*arguments, status=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output + repr(result.exception)
    return result.output


def objects(bucket, prefix):
    return {blob.name.removeprefix(prefix): blob.download_as_bytes() for blob in bucket.list_blobs(prefix=prefix)}


@pytest.fixture
def videos(tmp_path, make_video):
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("AAAAAAAAAAA", "BBBBBBBBBBB"):
        make_video(folder / f"{name}.mp4", seconds=1)
    return folder


def test_a_run_in_a_bucket_gives_the_bytes_of_one_on_a_disk(tmp_path, bucket, videos):
    bucket.blob("lists/val.csv").upload_from_string(LIST + "yoga,CCCCCCCCCCC,0,1,val\n")
    (tmp_path / "val.csv").write_text(LIST + "yoga,CCCCCCCCCCC,0,1,val\n")
    output = f"gs://{bucket.name}/data/k400"
    run = ("--source", videos, "--short-side", 32)
    prep("run", "--manifest", f"gs://{bucket.name}/lists/val.csv", "--output", output, *run)
    prep("run", "--manifest", tmp_path / "val.csv", "--output", tmp_path / "out", *run)
    here = {p.relative_to(tmp_path / "out").as_posix(): p.read_bytes() for p in (tmp_path / "out").glob("s*/**/*.*")}
    there = objects(bucket, "data/k400/")
    assert len(here) == 4
    assert {name: content for name, content in there.items() if name in here} == here
    assert {name.split("/")[0] for name in there} == {".lease", "clips", "index.json", "ledger", "shards", "snapshots"}

    assert json.loads(prep("status", output, "--json")) == {"listed": 3, "ok": 2, "failed": {"missing": 1}}
    assert "2 decoded, 0 problems" in prep("verify", output, "--decode")
    (videos / "CCCCCCCCCCC.mp4").symlink_to(videos / "AAAAAAAAAAA.mp4")
    assert "1 clips worked on" in prep("run", "--manifest", tmp_path / "val.csv", "--output", output, *run)
    assert "3 samples in 1 shards" in prep("compact", output)
    prep("purge", output, "BBBBBBBBBBB_000000_000001")
    assert "2 samples, 2 decoded, 0 problems" in prep("verify", output, "--decode")
    assert not [name for name in objects(bucket, "data/k400/") if "BBBBBBBBBBB" in name]


def test_one_run_at_a_time(bucket, videos, tmp_path, monkeypatch):
    output = open_output(f"gs://{bucket.name}/out")
    (tmp_path / "val.csv").write_text(LIST)
    run = ("run", "--manifest", tmp_path / "val.csv", "--source", videos, "--output", output, "--flow", "none")
    first = lease.take(output)
    assert "another run" in prep(*run, status=1)
    assert "ends in 60 minutes" in prep("purge", output, "AAAAAAAAAAA_000000_000001", status=1)
    lease.release(output, "somebody else")
    with pytest.raises(LeaseHeld):
        lease.take(output)
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.0)
    second = lease.take(output)
    monkeypatch.undo()
    with pytest.raises(LeaseLost, match="nothing is published"):
        lease.require(output, first)
    with pytest.raises(LeaseLost):
        lease.renew(output, first)
    lease.release(output, first)
    lease.require(output, second)
    lease.release(output, second)
    prep(*run)
    assert bucket.get_blob("out/.lease").metadata["holder"] == ""


def test_a_lease_that_is_renewed_does_not_end(bucket, monkeypatch):
    output = open_output(f"gs://{bucket.name}/out")
    holder = lease.take(output)
    generation = bucket.get_blob("out/.lease").generation
    lease.renew(output, holder)
    renewed = bucket.get_blob("out/.lease").generation
    assert renewed != generation
    lease.renew(output, holder)  # a moment later: no need
    assert bucket.get_blob("out/.lease").generation == renewed


@pytest.mark.parametrize(
    ("url", "said"),
    [("s3://bucket/out", "is for lists"), ("http://host/out", "starts with gs://"), ("gs://bucket", "a name below")],
)
def test_outputs_elsewhere_are_refused(tmp_path, url, said):
    (tmp_path / "val.csv").write_text(LIST)
    assert said in prep("run", "--manifest", tmp_path / "val.csv", "--output", url, status=2)


def test_what_is_not_there_is_named(bucket):
    assert "does not exist" in prep("status", f"gs://{bucket.name}/nothing", status=2)
    assert not open_path(f"gs://{bucket.name}/nothing").exists()


@pytest.mark.slow
def test_videos_cut_clips_and_datasets_in_buckets(tmp_path, bucket, videos, make_video):
    """A folder in a bucket holds whole videos and clips that are cut already; a dataset there is a source, too."""
    here = f"gs://{bucket.name}"
    cut = make_video(tmp_path / "cut.mkv", size="96x72", seconds=1)
    bucket.blob("videos/AAAAAAAAAAA.mp4").upload_from_filename(videos / "AAAAAAAAAAA.mp4")
    bucket.blob("videos/BBBBBBBBBBB_000000_000001.mkv").upload_from_filename(cut)
    bucket.blob("videos/class/own.mkv").upload_from_filename(cut)
    bucket.blob("own.csv").upload_from_string("path,label\nclass/own.mkv,yoga\nclass/none.mkv,yoga\n")
    bucket.blob("val.csv").upload_from_string(LIST)
    run = ("--source", f"{here}/videos", "--flow", "none", "--short-side", 32)
    prep("run", "--manifest", f"{here}/val.csv", "--output", f"{here}/rgb", *run)
    prep("run", "--manifest", f"{here}/own.csv", "--output", tmp_path / "own", *run)
    assert json.loads(prep("status", tmp_path / "own", "--json")) == {"listed": 2, "ok": 1, "failed": {"missing": 1}}
    entries = map(json.loads, objects(bucket, "rgb/ledger/")["outcomes.jsonl"].splitlines())
    assert [(entry["reason"], entry["stored"]["frames"]) for entry in entries] == [(None, 25), (None, 25)]

    prep("run", "--source", f"dataset:{here}/rgb", "--output", tmp_path / "flow", "--short-side", 32)
    assert "2 samples, 2 decoded, 0 problems" in prep("verify", tmp_path / "flow", "--decode")
