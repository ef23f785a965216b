"""kinetics-prep on real files: every listed row accounted for, the same bytes each time, nothing done twice."""

import json
import os
import subprocess

import numpy as np
import pytest
import webdataset
from click.testing import CliRunner

from flow import decode_flow_codes, dequantise, tvl1
from manifests.index import read_snapshot
from manifests.lease import LeaseHeld, lease
from pipeline.cli import main
from pipeline.video import decode_luma
from train.stream import open_samples, read_json

HEADER = "label,youtube_id,time_start,time_end,split\n"


def prep(*arguments, status=0):
    """Run the command in this process and give what it printed."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output + repr(result.exception)
    return result.output


def counts(dataset):
    found = json.loads(prep("status", dataset, "--json"))
    assert found["listed"] == found["ok"] + sum(found["failed"].values())
    return found


def ledger(dataset):
    lines = (dataset / "ledger" / "outcomes.jsonl").read_text().splitlines()
    return {entry["key"]: entry for entry in map(json.loads, lines)}


def shard_bytes(dataset):
    """Name and content of all shards and their indexes."""
    return {p.relative_to(dataset).as_posix(): p.read_bytes() for p in dataset.glob("shards/*/*")}


@pytest.fixture(scope="module")
def videos(tmp_path_factory, make_video):
    """A folder of sources: three good ones of different rates and sizes, and every way to be bad."""
    folder = tmp_path_factory.mktemp("videos")
    make_video(folder / "AAAAAAAAAAA.mp4", "-f", "mp4", seconds=2)
    make_video(folder / "-BBBBBBBBBB.webm", "-c:v", "libvpx", "-deadline", "realtime", rate="30", seconds=2)
    make_video(folder / "CCCCCCCCCCC.mkv", "-c:v", "ffv1", rate="15", size="90x120", seconds=2)
    (folder / "EEEEEEEEEEE.mp4").touch()
    (folder / "HHHHHHHHHHH.mp4").write_text("<!doctype html><title>Sign in</title>")
    sine = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "sine=duration=1", str(folder / "SSSSSSSSSSS.mp4")]
    subprocess.run(sine, check=True, timeout=60)
    return folder


@pytest.fixture
def good_list(tmp_path):
    path = tmp_path / "val.csv"
    path.write_text(
        HEADER
        + "yoga,AAAAAAAAAAA,0,1,val\nzumba,-BBBBBBBBBB,1,2,val\n,CCCCCCCCCCC,0,1,test\nyoga,AAAAAAAAAAA,1,2,val\n"
    )
    return path


RUN = ("--short-side", 32)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, videos):
    """A dataset with flow, made from lists with every kind of bad row and bad video."""
    folder = tmp_path_factory.mktemp("made")
    listed = folder / "list.csv"
    listed.write_text(
        HEADER
        + "yoga,AAAAAAAAAAA,0,1,val\nzumba,-BBBBBBBBBB,1,2,val\n,CCCCCCCCCCC,0,1,test\nyoga,AAAAAAAAAAA,1,9,val\n"
        + "yoga,EEEEEEEEEEE,0,1,val\nyoga,HHHHHHHHHHH,0,1,val\nyoga,SSSSSSSSSSS,0,1,val\nyoga,MMMMMMMMMMM,0,1,val\n"
        + "yoga,AAAAAAAAAAA,50,60,val\nyoga,bad id,0,1,val\nyoga,AAAAAAAAAAA,2,1,val\nyogo,AAAAAAAAAAA,0,2,val\n"
        + "yoga,AAAAAAAAAAA,0,1,val\n"
    )
    output = folder / "out"
    prep("run", "--manifest", listed, "--source", videos, "--output", output, "--workers", 2, *RUN)
    return output


def test_every_row_is_accounted_for(dataset):
    assert counts(dataset) == {
        "listed": 13,
        "ok": 4,
        "failed": {
            "bad-row": 2,
            "empty-file": 1,
            "missing": 1,
            "no-video-stream": 1,
            "not-a-video": 1,
            "repeated-row": 1,
            "too-short": 1,
            "unknown-label": 1,
        },
    }
    entries = ledger(dataset)
    assert "Invalid data found" in entries["HHHHHHHHHHH_000000_000001"]["message"]
    assert "'bad id'" in entries["list.csv:11"]["message"]
    assert "start 2 is not before end 1" in entries["list.csv:12"]["message"]
    assert "yogo" in entries["list.csv:13"]["message"]
    assert "listed        13" in prep("status", dataset)


def test_verify_decodes_all(dataset):
    assert "4 samples, 4 decoded, 0 problems" in prep("verify", dataset, "--decode")
    assert "2 decoded" in prep("verify", dataset, "--decode", 2)


def test_shards_read_with_plain_webdataset(dataset):
    shards = [str(path) for path in sorted((dataset / "shards" / "val").glob("*.tar"))]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).to_tuple("__key__", "rgb.mp4", "flow.mp4", "cls"))
    assert [key for key, *_ in samples] == sorted(key for key, *_ in samples)
    assert {key: int(index) for key, _, _, index in samples} == {
        "-BBBBBBBBBB_000001_000002": 399,
        "AAAAAAAAAAA_000000_000001": 398,
        "AAAAAAAAAAA_000001_000009": 398,
    }
    for _, rgb, flow, _ in samples:
        assert len(decode_flow_codes(flow)) == len(decode_luma(rgb)) - 1


def test_flow_is_a_function_of_the_stored_rgb(dataset):
    (shard,) = (dataset / "shards" / "test-unlabelled").glob("*.tar")
    (sample,) = webdataset.WebDataset(str(shard), shardshuffle=False)
    assert "cls" not in sample
    flow = tvl1(decode_luma(sample["rgb.mp4"]))
    assert np.abs(flow).max() > 1
    error = np.abs(dequantise(decode_flow_codes(sample["flow.mp4"])) - np.clip(flow, -20, 20))
    assert error.mean() < 0.1
    metadata = json.loads(sample["json"])
    assert metadata["flow"]["parameters"]["tau"] == 0.25
    assert metadata["rgb"]["duplicated"] == 10  # 15 frames a second shown 25 times
    assert (metadata["label"], metadata["class_index"], metadata["duration_seconds"]) == (None, None, 1.0)


def test_metadata_holds_nothing_that_changes(dataset):
    (shard,) = (dataset / "shards" / "test-unlabelled").glob("*.tar")
    (sample,) = webdataset.WebDataset(str(shard), shardshuffle=False)
    assert str(dataset.parent) not in sample["json"].decode()
    assert not {"time", "host", "attempts", "seconds"} & json.loads(sample["json"]).keys()


def test_preview_and_report(dataset, tmp_path):
    picture = tmp_path / "clip.png"
    prep("preview", dataset, "-o", picture, "--", "-BBBBBBBBBB_000001_000002")
    import cv2

    assert cv2.imread(str(picture)).shape == (64, 6 * 42, 3)
    assert "no published sample" in prep("preview", dataset, "nothing", "-o", picture, status=1)
    assert "only .png" in prep("preview", dataset, "nothing", "-o", tmp_path / "clip.jpg", status=2)
    prep("report", dataset)
    page = (dataset / "report.html").read_text()
    assert page.count("<figure>") == 5
    assert "&lt;" not in page.split("<h2>Attrition")[1]
    assert "http" not in page.replace("data:", "")


def test_names_from_lists_are_escaped_in_the_report(tmp_path, make_video):
    folder = tmp_path / "videos" / "<script>alert(1)"
    folder.mkdir(parents=True)
    make_video(folder / "a.mp4", seconds=1)
    prep("run", "--manifest", folder.parent, "--output", tmp_path / "out", "--flow", "none", *RUN)
    prep("report", tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script" in page


def test_the_number_of_workers_changes_no_byte(tmp_path, videos, good_list):
    for workers in (1, 3):
        output = tmp_path / f"out{workers}"
        prep("run", "--manifest", good_list, "--source", videos, "--output", output, "--workers", workers, *RUN)
    one, three = shard_bytes(tmp_path / "out1"), shard_bytes(tmp_path / "out3")
    assert len(one) == 4
    assert one == three
    assert (tmp_path / "out1" / "index.json").read_bytes() == (tmp_path / "out3" / "index.json").read_bytes()


def test_the_next_run_does_only_what_is_missing(tmp_path, videos, good_list, make_video):
    source = tmp_path / "videos"
    source.mkdir()
    for path in videos.iterdir():
        (source / path.name).symlink_to(path)
    (source / "CCCCCCCCCCC.mkv").unlink()
    run = ("run", "--manifest", good_list, "--source", source, "--output", tmp_path / "out", "--flow", "none", *RUN)
    prep(*run)
    first = shard_bytes(tmp_path / "out")
    assert counts(tmp_path / "out")["failed"] == {"missing": 1}

    assert "1 clips worked on" in prep(*run)
    assert read_snapshot(tmp_path / "out").name == "0001"
    assert ledger(tmp_path / "out")["CCCCCCCCCCC_000000_000001"]["attempts"] == 2

    (source / "CCCCCCCCCCC.mkv").symlink_to(videos / "CCCCCCCCCCC.mkv")
    prep(*run)
    assert counts(tmp_path / "out") == {"listed": 4, "ok": 4, "failed": {}}
    snapshot = read_snapshot(tmp_path / "out")
    assert (snapshot.name, snapshot.parent) == ("0002", "0001")
    assert first.items() <= shard_bytes(tmp_path / "out").items()
    assert len(read_snapshot(tmp_path / "out", "0001").shards) == len(snapshot.shards) - 1
    assert "0 clips worked on" in prep(*run)
    prep("verify", tmp_path / "out", "--decode")


def test_a_run_killed_just_before_the_root_is_published_by_the_next(tmp_path, videos, good_list):
    """The same where the root was lost: what is published is never overwritten."""
    output = tmp_path / "out"
    run = ("run", "--source", videos, "--output", output, "--flow", "none", *RUN)
    prep(*run, "--manifest", good_list)
    root = (output / "index.json").read_bytes()
    (output / "index.json").unlink()
    assert "0 clips worked on" in prep(*run, "--manifest", good_list)
    assert (output / "index.json").read_bytes() == root

    (output / "index.json").unlink()
    other = tmp_path / "other.csv"
    other.write_text(HEADER + "yoga,AAAAAAAAAAA,0,2,val\n")
    prep(*run, "--manifest", other)
    assert read_snapshot(output).name == "0002"
    assert "5 samples, 5 decoded, 0 problems" in prep("verify", output, "--decode")


def test_files_of_others_stay(tmp_path, videos, good_list):
    output = tmp_path / "out"
    foreign = [output / name for name in (".mine.partial", "shards/val/mine.tar", "project/.a.0123abcd.partial")]
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    prep("run", "--manifest", good_list, "--source", videos, "--output", output, "--flow", "none", *RUN)
    assert all(path.exists() for path in foreign)


def test_several_lists_behind_one_option(tmp_path, videos, good_list):
    other = tmp_path / "other.csv"
    other.write_text(HEADER + "yoga,AAAAAAAAAAA,0,2,val\nyoga,bad,0,2,val\n")
    run = ("run", "--manifest", good_list, other, "--source", videos, "--output", tmp_path / "out", "--flow", "none")
    assert "6 rows listed, 1 rejected" in prep(*run, *RUN)
    other.write_text(HEADER + "yoga,AAAAAAAAAAA,0,2,val\n")
    prep(*run, *RUN)
    assert counts(tmp_path / "out")["failed"] == {}  # the mended row's failure has gone


@pytest.mark.parametrize("content", ["garbage\n", "{}\n", "[]\n"])
def test_a_damaged_ledger_is_named(tmp_path, content):
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / "outcomes.jsonl").write_text(content)
    for name in ("status", "report"):
        assert "outcomes.jsonl:1" in prep(name, tmp_path, status=1)


def test_another_specification_is_refused(tmp_path, videos, good_list):
    run = ("run", "--manifest", good_list, "--source", videos, "--output", tmp_path / "out", "--flow", "none")
    prep(*run, "--short-side", 32)
    before = shard_bytes(tmp_path / "out")
    assert "rgb.short_side: 32 → 64" in prep(*run, "--short-side", 64, status=1)
    assert "flow: None →" in prep(*run[:-2], "--short-side", 32, status=1)
    assert "classes_name: 'kinetics400' → 'kinetics600'" in prep(*run, *RUN, "--classes", "kinetics600", status=1)
    assert shard_bytes(tmp_path / "out") == before


def test_one_run_at_a_time(tmp_path, videos, good_list):
    run = ("run", "--manifest", good_list, "--source", videos, "--output", tmp_path / "out", "--flow", "none", *RUN)
    with lease(tmp_path / "out"):
        assert f"another run (process {os.getpid()})" in prep(*run, status=1)
        with pytest.raises(LeaseHeld), lease(tmp_path / "out"):
            pass
    prep(*run)


@pytest.mark.slow
def test_through_yt_dlp(tmp_path, videos, serve):
    listed = tmp_path / "val.csv"
    ids = ["AAAAAAAAAAA", "-BBBBBBBBBB", "EEEEEEEEEEE", "HHHHHHHHHHH", "MMMMMMMMMMM", "PPPPPPPPPPP"]
    listed.write_text(HEADER + "".join(f"yoga,{name},0,1,val\n" for name in ids))
    site = tmp_path / "site"
    site.mkdir()
    for path in videos.iterdir():
        (site / path.stem).symlink_to(path)
        (site / f"{path.stem}.mp4").symlink_to(path)
    # A page with another video in it: what it shows must not go under the clip's label.
    (site / "PPPPPPPPPPP.mp4").write_text('<html><body><video src="/AAAAAAAAAAA.mp4"></video></body></html>')
    source = serve(site) + "/{youtube_id}.mp4"
    output = tmp_path / "out"
    prep("run", "--manifest", listed, "--source", source, "--output", output, "--flow", "none", *RUN)
    entries = ledger(output)
    assert {key[:11]: entry["reason"] for key, entry in entries.items()} == {
        "AAAAAAAAAAA": None,
        "-BBBBBBBBBB": None,
        "EEEEEEEEEEE": "empty-file",
        "HHHHHHHHHHH": "not-a-video",
        "MMMMMMMMMMM": "missing",
        "PPPPPPPPPPP": "not-a-video",
    }
    assert "HTTP Error 404" in entries["MMMMMMMMMMM_000000_000001"]["message"]
    local = tmp_path / "local"
    prep("run", "--manifest", listed, "--source", videos, "--output", local, "--flow", "none", *RUN)
    assert shard_bytes(output) == shard_bytes(local)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--source", "https://example.org/video.mp4"), "has no {youtube_id}"),
        (("--source", "file:///etc/{youtube_id}"), "only http://, https://"),
        (("--source", "nowhere"), "neither 'youtube'"),
        (("--short-side", 33), "must be an even number"),
        (("--short-side", 8), "must be an even number"),
        (("--classes", "nowhere.txt"), "class list 'nowhere.txt'"),
        (("--sort-side", 256), "no such option: --sort-side 256"),
        (("--runner",), "Beam options --runner"),
    ],
)
def test_bad_arguments(tmp_path, good_list, videos, arguments, said):
    run = ("run", "--manifest", good_list, "--source", videos, "--output", tmp_path / "out")
    output = CliRunner().invoke(main, [str(argument) for argument in (*run, *arguments)]).output
    assert said in output
    assert not (tmp_path / "out").exists()


def test_a_run_without_any_good_clip_fails(tmp_path, videos):
    listed = tmp_path / "val.csv"
    listed.write_text(HEADER + "yoga,MMMMMMMMMMM,0,1,val\n")
    run = ("run", "--manifest", listed, "--source", videos, "--output", tmp_path / "out", "--flow", "none", *RUN)
    assert "no clip came out well" in prep(*run, status=1)
    assert counts(tmp_path / "out") == {"listed": 1, "ok": 0, "failed": {"missing": 1}}


def test_clips_of_ones_own(tmp_path, make_video):
    (tmp_path / "jump").mkdir()
    (tmp_path / "run (fast)").mkdir()
    make_video(tmp_path / "jump" / "-a #1.mp4", seconds=1)
    make_video(tmp_path / "run (fast)" / "b.mp4", seconds=1)
    output = tmp_path.parent / f"{tmp_path.name}-out"
    prep("run", "--manifest", tmp_path, "--output", output, "--flow", "none", *RUN)
    snapshot = read_snapshot(output)
    assert snapshot.classes.labels == ("jump", "run (fast)")
    listed = tmp_path.parent / f"{tmp_path.name}.csv"
    listed.write_text("path,label\njump/-a #1.mp4,jump\nrun (fast)/b.mp4,stand\n")
    again = ("run", "--manifest", listed, "--source", tmp_path, "--output", output, "--flow", "none", *RUN)
    assert "label 'stand' is not among the 2 classes of own" in prep(*again)


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "index", "root", "snapshot"])
def test_verify_names_what_differs(tmp_path, videos, good_list, damage):
    output = tmp_path / "out"
    prep("run", "--manifest", good_list, "--source", videos, "--output", output, "--flow", "none", *RUN)
    (shard,) = (output / "shards" / "val").glob("*.tar")
    content = bytearray(shard.read_bytes())
    if damage == "truncate":
        shard.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[len(content) // 3] ^= 1
        shard.write_bytes(content)
    elif damage == "delete":
        shard.unlink()
    elif damage == "index":
        shard.with_suffix(".index.npy").write_bytes(b"\x93NUMPY")
    elif damage == "root":
        (output / "index.json").write_text("{}")
    elif damage == "snapshot":
        snapshot = output / "snapshots" / "0001" / "snapshot.json"
        snapshot.write_text(snapshot.read_text().replace("yoga", "yogi"))
    said = prep("verify", output, "--decode", status=1)
    assert {"root": "index.json", "snapshot": "snapshot.json"}.get(damage, shard.stem) in said


def test_status_of_nothing(tmp_path):
    assert "no run has ended there yet" in prep("status", tmp_path, status=1)
    assert "nothing is published" in prep("verify", tmp_path, status=1)


def test_retry_compact_and_purge(tmp_path, make_video):
    """What failed for good is left alone until it is asked for; later everything is one generation; one clip goes."""
    for name in ("walk/a.mp4", "walk/b.mp4", "jump/c.mp4"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        make_video(tmp_path / "in" / name, seconds=0.5)
    (tmp_path / "in" / "walk" / "b.mp4").write_bytes(b"no video")
    output = tmp_path / "out"
    run = ("run", "--manifest", tmp_path / "in", "--output", output, "--flow", "none", "--short-side", 32)
    said = prep(*run, "--max-failures", 0, status=1)
    assert "1 clips of this run failed, more than --max-failures 0" in said
    assert counts(output)["failed"] == {"not-a-video": 1}
    make_video(tmp_path / "in" / "walk" / "b.mp4", seconds=0.5)
    assert "2 published before, 1 failed for good before (--retry), 0 clips worked on" in prep(*run)
    assert "2 published before, 1 clips worked on" in prep(*run, "--retry", "not-a-video", "--max-failures", 0)
    assert counts(output)["failed"] == {}
    assert read_snapshot(output).name == "0002"
    assert "withdrawn" in prep(*run, "--retry", "withdrawn", status=2)

    assert "snapshot 0003: 3 samples in 1 shards" in prep("compact", output)
    fresh = tmp_path / "fresh"
    prep(*run[:4], fresh, *run[5:])
    assert [shard.sha256 for shard in read_snapshot(output).shards] == [s.sha256 for s in read_snapshot(fresh).shards]

    (key,) = (key for key in ledger(output) if key.startswith("b_"))
    prep("report", output)
    assert "no clip 'other' there" in prep("purge", output, "other", status=1)
    assert "1 taken down; snapshot 0004 is the current one" in prep("purge", output, key)
    assert "0 problems" in prep("verify", output, "--decode")
    assert counts(output) == {"listed": 3, "ok": 2, "failed": {"withdrawn": 1}}
    assert not (output / "report.html").exists()
    assert not (output / "report").exists()
    assert "1 taken down, 0 clips worked on" in prep(*run, "--retry", "all")
    assert prep("report", output)
    with lease(output):
        assert "is working on" in prep("purge", output, key, status=1)
        assert "is working on" in prep("compact", output, status=1)


@pytest.mark.slow
def test_a_dataset_is_reprocessed_without_its_sources(tmp_path, make_video):
    """Flow for RGB, other flow: the bytes of a run from the sources. Another size: every clip, from what is stored."""
    for name in ("walk/a.mp4", "walk/b.mp4", "jump/c.mp4"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        make_video(tmp_path / "in" / name, "-r", "20", seconds=0.6)
    size = ("--short-side", 48)
    listed = ("run", "--manifest", tmp_path / "in", *size)
    prep(*listed, "--output", tmp_path / "rgb", "--flow", "none")
    prep(*listed, "--output", tmp_path / "flat", "--flow", "tvl1-flat")
    (tmp_path / "in").rename(tmp_path / "gone")

    stored = ("run", "--source", f"dataset:{tmp_path / 'rgb'}")
    assert "3 rows listed, 0 rejected, 0 published before, 3 clips" in prep(
        *stored, *size, "--output", tmp_path / "flat2", "--flow", "tvl1-flat"
    )
    assert shard_bytes(tmp_path / "flat2") == shard_bytes(tmp_path / "flat")
    again = ("run", "--source", f"dataset:{tmp_path / 'flat'}@0001", *size, "--flow", "none")
    prep(*again, "--output", tmp_path / "rgb2")
    assert shard_bytes(tmp_path / "rgb2") == shard_bytes(tmp_path / "rgb")

    prep(*stored, "--short-side", 32, "--output", tmp_path / "small", "--flow", "none")
    assert "3 decoded, 0 problems" in prep("verify", tmp_path / "small", "--decode")
    before, after = (
        [read_json(sample.read()) for sample in open_samples(str(tmp_path / name))] for name in ("rgb", "small")
    )
    assert [found["rgb"]["height"] for found in after] == [32] * 3
    for one, other in zip(before, after, strict=True):
        assert one["source"] == other["source"]
        assert (one["rgb"]["frames"], one["rgb"]["duplicated"]) == (other["rgb"]["frames"], other["rgb"]["duplicated"])
    assert after[0]["rgb"]["duplicated"] > 0

    assert "no list: name one with --manifest" in prep("run", "--output", tmp_path / "x", status=1)
    assert "no dataset is published in" in prep(
        "run", "--source", "dataset:nowhere", "--output", tmp_path / "x", status=1
    )
    assert "no snapshot 0009" in prep("run", "--source", f"dataset:{tmp_path / 'rgb'}@0009", "--output", "x", status=1)
