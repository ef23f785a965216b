"""Shards: a pure function of the clips that came out well and the specification; readers refuse what is not ours."""

import io
import json
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.clip import file_clip
from manifests.files import complete_file, write_file
from manifests.index import index_tar, read_members, read_records, write_records
from manifests.sample import FlowCoding, FormatError, Specification, differences, specification_from_json
from pipeline.shards import FinishedClips, plan_shards, write_shard

SPECIFICATION = Specification("own", "0" * 64, samples_per_shard=4)


def metadata(key, class_index=0, **changes):
    sha256 = "9834876dcfb05cb167a5c24953eba58c4ac89b1adf57f28f2f9d09af107ee8f0"  # of b"aaa"
    value = {"format_version": 1, "key": key, "label": "x", "class_index": class_index, "split": None, "flow": None}
    value |= {"memberships": [], "classes": {"name": "own", "sha256": "0" * 64}}
    value |= {"rgb": {"frames": 9, "width": 64, "height": 64, "sha256": sha256}}
    return json.dumps({**value, **changes}).encode()


def members(key, **changes):
    return {"rgb.mp4": b"aaa", "json": metadata(key, **changes), "cls": b"0"}


def clips(count):
    return [file_clip(f"{i}.mp4", "x") for i in range(count)]


@settings(deadline=None)
@given(st.permutations(range(11)), st.integers(0, 3))
def test_the_plan_does_not_depend_on_the_order_of_arrival(order, seed):
    specification = Specification("own", "0" * 64, samples_per_shard=4, seed=seed)
    given_clips = clips(11)
    planned = plan_shards([given_clips[i] for i in order], 1, specification)
    assert planned == plan_shards(given_clips, 1, specification)
    assert [len(shard.keys) for shard in planned] == [4, 4, 3]
    assert sorted(key for shard in planned for key in shard.keys) == sorted(clip.key for clip in given_clips)
    assert all(shard.keys == tuple(sorted(shard.keys)) for shard in planned)


def test_the_seed_decides_who_sits_with_whom():
    plans = {
        plan_shards(clips(40), 1, Specification("own", "0" * 64, samples_per_shard=4, seed=seed))[0].keys
        for seed in range(5)
    }
    assert len(plans) == 5


def test_groups_by_split_and_label():
    mixed = [file_clip(f"{i}.mp4", "x" if i % 2 else None, split="val" if i % 3 else None) for i in range(12)]
    planned = plan_shards(mixed, 1, SPECIFICATION)
    assert {(shard.group.name, shard.group.labelled, shard.group.split) for shard in planned} == {
        ("all", True, None),
        ("all-unlabelled", False, None),
        ("val", True, "val"),
        ("val-unlabelled", False, "val"),
    }


@pytest.fixture
def shard(tmp_path):
    finished = FinishedClips.of(tmp_path, SPECIFICATION)
    listed = clips(3)
    for clip in listed:
        finished.write(clip, members(clip.key), complete=True)
    (planned,) = plan_shards(listed, 1, SPECIFICATION)
    return tmp_path / write_shard(planned, finished.members, tmp_path).path


def test_index_finds_every_member(shard):
    with shard.open("rb") as file:
        records = index_tar(file, "shard")
        assert np.array_equal(records, read_records(shard.with_suffix(".index.npy").read_bytes(), "index"))
        for record in records:
            found = read_members(file, record)
            assert (found["rgb.mp4"], json.loads(found["json"])["key"]) == (b"aaa", record["key"].decode())
            assert "flow.mp4" not in found
    with tarfile.open(shard) as tar:
        entry = tar.next()
    assert (entry.mtime, entry.uid, entry.gid, entry.uname) == (0, 0, 0, "")


def test_finished_clips_of_another_label_are_not_taken(tmp_path):
    finished = FinishedClips.of(tmp_path, SPECIFICATION)
    finished.write(file_clip("a.mp4", "x"), members(file_clip("a.mp4", "x").key), complete=True)
    assert finished.read(file_clip("a.mp4", "x"), complete=True)
    assert finished.read(file_clip("a.mp4", "y"), complete=True) is None
    assert finished.read(file_clip("a.mp4", "x", split="val"), complete=True) is None
    assert finished.read(file_clip("a.mp4", "x", memberships=["test1"]), complete=True) is None
    assert finished.read(file_clip("b.mp4", "x"), complete=True) is None


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_damaged_finished_clips_are_made_again(tmp_path, damage):
    finished = FinishedClips.of(tmp_path, SPECIFICATION)
    clip = file_clip("a.mp4", "x")
    finished.write(clip, members(clip.key), complete=True)
    (path,) = finished.folder.iterdir()
    content = path.read_bytes()
    damaged = {"cut": content[:600], "flip": content.replace(b"aaa", b"aba"), "empty": b"", "other": b"x" * 9000}
    path.write_bytes(damaged[damage])
    assert finished.read(clip, complete=True) is None
    assert not path.exists()


def tar_of(*entries):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in entries:
            entry = tarfile.TarInfo(name)
            if content is None:
                entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
                tar.addfile(entry)
            else:
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    buffer.seek(0)
    return buffer


GOOD = [("k.rgb.mp4", b"aaa"), ("k.json", metadata("k")), ("k.cls", b"0")]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([*GOOD, ("../k.rgb.mp4", b"")], "no member of a sample"),
        ([*GOOD, ("/etc/passwd", b"")], "no member of a sample"),
        ([*GOOD, ("k.flow.mp4", None)], "no member of a sample"),
        ([*GOOD, ("k.exe", b"")], "no member of a sample"),
        ([*GOOD, ("k.rgb.mp4", b"aaa")], "stands twice"),
        (GOOD[1:], "has no rgb"),
        ([GOOD[0], GOOD[2]], "has no json"),
        ([("k.rgb.mp4", b"bbb"), *GOOD[1:]], "checksum"),
        ([*GOOD, ("k.flow.mp4", b"aaa")], "checksum"),
        ([*GOOD[:2], ("k.cls", b"1")], "class 1 beside metadata of class 0"),
        ([*GOOD[:2], ("k.cls", b"-1")], "no class index"),
        (GOOD[:2], "class -1 beside metadata of class 0"),
        ([GOOD[0], ("k.json", metadata("k", format_version=2)), GOOD[2]], "format version 2, this program reads"),
        ([GOOD[0], ("k.json", b"[]"), GOOD[2]], "not the metadata"),
        ([GOOD[0], ("k.json", b"{"), GOOD[2]], "not the metadata"),
        (
            [GOOD[0], ("k.json", metadata("k", rgb={"frames": "9"})), GOOD[2]],
            "rgb.frames is missing, of another type",
        ),
        (
            [GOOD[0], ("k.json", metadata("k", class_index=-7)), GOOD[2]],
            "class_index is missing, of another type or range",
        ),
        ([GOOD[0], ("k.json", metadata("k", class_index=True)), GOOD[2]], "class_index is missing, of another"),
        ([GOOD[0], ("k.json", metadata("k", flow=[1])), GOOD[2]], "flow.frames is missing, of another type"),
        ([GOOD[0], ("k.json", metadata("k", flow={})), GOOD[2]], "flow.frames is missing, of another type"),
        ([GOOD[0], ("k.json", metadata("k", memberships=None)), GOOD[2]], "memberships is missing, of another type"),
        ([GOOD[0], ("k.json", metadata("k", memberships=["train9"])), GOOD[2]], "some of train1, test1"),
        ([GOOD[0], ("k.json", metadata("k", memberships=[["train1"]])), GOOD[2]], "some of train1, test1"),
        ([GOOD[0], ("k.json", b"[" * 100000), GOOD[2]], "not the metadata"),
        ([GOOD[0], ("k.json", b" " * (1 << 21)), GOOD[2]], "larger than"),
    ],
)
def test_hostile_shards(entries, said):
    with pytest.raises(FormatError, match=said):
        index_tar(tar_of(*entries), "shard.tar")


def test_memberships_are_bits_of_the_index():
    (record,) = index_tar(tar_of(GOOD[0], ("k.json", metadata("k", memberships=["train1", "test2"])), GOOD[2]), "shard")
    assert record["memberships"] == 0b1001
    (record,) = index_tar(tar_of(*GOOD), "shard")
    assert record["memberships"] == 0


def test_a_sparse_member_that_claims_to_be_huge():
    """GNU's old sparse header: a short file that says it holds 2^62 zeros."""
    entry = tarfile.TarInfo("k.rgb.mp4")
    header = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"S"
    header[124:136] = b"%011o\0" % 0
    header[386:410] = b"%011o\0%011o\0" % (0, 0)
    header[483:495] = b"\x80" + b"\0" * 3 + (2**62).to_bytes(8, "big")
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(FormatError, match=r"shard\.tar"):
        index_tar(io.BytesIO(bytes(header) + bytes(10240 - 512)), "shard.tar")


@pytest.mark.parametrize("keep", [0, 100, 700, 1500, 2600, 3500])
def test_a_cut_tar_is_noticed_wherever_it_is_cut(keep):
    content = tar_of(*GOOD).getvalue()
    with pytest.raises(FormatError, match=r"shard\.tar"):
        index_tar(io.BytesIO(content[:keep]), "shard.tar")


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", write_records(np.zeros(1)), write_records(np.zeros(1, "V8"))])
def test_what_is_no_index(content):
    with pytest.raises(FormatError, match="index"):
        read_records(content, "index")


def test_specifications_come_back_and_are_told_apart():
    flow = FlowCoding(parameters={"tau": 0.25})
    one, other = Specification("own", "0" * 64, flow=flow), Specification("own", "0" * 64)
    assert specification_from_json(json.loads(json.dumps(one.to_json()))) == one
    assert one.name != other.name
    (difference,) = differences(one.to_json(), other.to_json())
    assert difference.startswith("flow: ")
    with pytest.raises(FormatError, match="format version 9"):
        specification_from_json({**one.to_json(), "format_version": 9})
    with pytest.raises(FormatError, match="not a specification"):
        specification_from_json({**one.to_json(), "colour": "red"})
    with pytest.raises(FormatError, match="short side '256', not an even number"):
        specification_from_json({**one.to_json(), "rgb": {"short_side": "256"}})


def test_files_are_whole_or_as_they_were(tmp_path):
    path = tmp_path / "file"
    write_file(path, b"old")
    with pytest.raises(TypeError), complete_file(path) as file:
        file.write("not bytes")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
