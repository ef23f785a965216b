"""UCF-101 and HMDB-51 in the layout in which they are published: each video once, with the splits that it is in."""

import json
import shutil

import pytest
from click.testing import CliRunner
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from manifests.clip import MEMBERSHIPS, file_clip, membership_mask, memberships_of
from manifests.index import read_snapshot, snapshot_from_json
from manifests.lists import ListError, read_lists, reject_unknown_labels
from manifests.sample import FormatError
from pipeline.cli import main
from pipeline.ledger import read_ledger
from train.stream import open_samples, trainable_samples

# The second class as the real one is: its videos do not spell it as its folder does.
CLASSES = ("YoYo", "HandstandPushups", "Archery")
FLY, BOW = "YoYo/v_YoYo_g01_c01.avi", "Archery/v_Archery_g01_c01.avi"
PUSH = "HandstandPushups/v_HandStandPushups_g01_c01.avi"
ODD = "#20_Rhythm_clap_u_nm_np1_fr_goo_0.avi"
ODDER = "Let's go! (live) & more [1]_clap_f_cm_np1_ri_bad_2.avi"


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\r\n" for line in lines), newline="")


def ucf(root, train=(), test=()):
    """A layout of UCF-101 with the first split's lines."""
    write(root / "ucfTrainTestlist" / "classInd.txt", *(f"{i} {name}" for i, name in enumerate(CLASSES, 1)))
    write(root / "ucfTrainTestlist" / "trainlist01.txt", *train)
    write(root / "ucfTrainTestlist" / "testlist01.txt", *test)
    return root


def hmdb(root, **lines):
    """A layout of HMDB-51; `lines` by split file."""
    for name, flags in lines.items():
        write(root / "testTrainMulti_7030_splits" / f"{name}.txt", *(f"{line} " for line in flags))
    return root


def test_ucf101(tmp_path):
    root = ucf(tmp_path / "ucf", [f"{FLY} 1", f"{PUSH} 2"], [BOW])
    write(root / "ucfTrainTestlist" / "trainlist02.txt", f"{BOW} 3")
    write(root / "ucfTrainTestlist" / "testlist02.txt", PUSH, FLY)
    write(root / "ucfTrainTestlist" / "README.txt", "not a split")
    for path in (FLY, "Archery/extra.avi", "Archery/notes.txt", "Archery/._a.avi", "Other/b.avi"):
        write(root / "UCF-101" / path)
    listing = read_lists([root])
    assert {clip.video: (clip.label, clip.memberships) for clip in listing.clips} == {
        FLY: ("YoYo", ("train1", "test2")),
        PUSH: ("HandstandPushups", ("train1", "test2")),
        BOW: ("Archery", ("test1", "train2")),
        "Archery/extra.avi": ("Archery", ()),
    }
    assert {(clip.folder, clip.split, clip.group) for clip in listing.clips} == {(str(root / "UCF-101"), None, "all")}
    assert [(row.place, row.reason) for row in listing.rejected] == [("ucf:Archery/notes.txt", "bad-row")]
    assert [(classes.name, classes.labels) for classes in listing.classes] == [("ucf101", CLASSES)]
    assert listing.places[listing.clips[0].key] == "ucf:testlist01.txt:1"


def test_hmdb51(tmp_path):
    root = hmdb(
        tmp_path / "hmdb", clap_test_split1=[f"{ODD} 1", f"{ODDER} 0"], clap_test_split2=[f"{ODD} 2", f"{ODDER} 1"],
        clap_test_split3=[f"{ODD} 0", f"{ODDER} 0"], brush_hair_test_split1=["a.avi 2", "unused.avi 0"],
    )  # fmt: skip
    write(root / "clap" / ODD)
    listing = read_lists([root])
    assert listing.rejected == []
    assert {clip.video: clip.memberships for clip in listing.clips} == {
        f"clap/{ODD}": ("train1", "test2"),
        f"clap/{ODDER}": ("train2",),
        "brush_hair/a.avi": ("test1",),
        "brush_hair/unused.avi": (),
    }
    assert {clip.folder for clip in listing.clips} == {str(root)}
    assert listing.classes[0].labels == ("brush_hair", "clap")
    assert listing.classes[0].name == "hmdb51"


def test_where_the_videos_lie_is_no_part_of_a_clip(tmp_path):
    root, elsewhere = ucf(tmp_path / "ucf", [f"{FLY} 1"]), tmp_path / "elsewhere"
    write(root / "UCF-101" / FLY)
    write(elsewhere / FLY)
    (here,), (there,) = read_lists([root]).clips, read_lists([root], elsewhere).clips
    assert (here.key, here.folder, there.folder) == (there.key, str(root / "UCF-101"), str(elsewhere))
    (tmp_path / "of other lists").mkdir()
    assert read_lists([root], tmp_path / "of other lists").clips == [here]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("Juggling/a.avi 1", "no class 'Juggling' in classInd.txt"),
        (f"{BOW} 1", "number '1' for Archery, which is class 3"),
        (f"{BOW} 9", "number '9' for Archery"),
        (f"{BOW}", "no class '' in classInd.txt"),
        ("Archery/../../../etc/a.avi 3", "is no file in the folder of its class"),
        ("../Archery/a.avi 3", "no class '..'"),
        ("/Archery/a.avi 3", "no class ''"),
        ("Archery/.. 3", "not the ending of a video file"),
        ("Archery/a.sh 3", "'.sh' is not the ending of a video file"),
        ("Archery/a\x1b[2J.avi 3", "must name a file inside"),
        ("Archery/caf\udce9.avi 3", "must name a file inside"),
        (f"{FLY} 1", "stands already at ucf:trainlist01.txt:1"),
        (f"{PUSH} 2", "is test in this split at ucf:testlist01.txt:1"),
    ],
)
def test_bad_lines_of_ucf101(tmp_path, line, said):
    root = ucf(tmp_path / "ucf", test=[PUSH])
    text = f"{FLY} 1\n{line}\n{BOW} 3\n".encode(errors="surrogateescape")
    (root / "ucfTrainTestlist" / "trainlist01.txt").write_bytes(text)
    listing = read_lists([root])
    assert {clip.video: clip.memberships for clip in listing.clips} == {
        PUSH: ("test1",), FLY: ("train1",), BOW: ("train1",)
    }  # fmt: skip
    (row,) = listing.rejected
    assert (row.list_name, row.place, row.reason) == ("ucf", "ucf:trainlist01.txt:2", "bad-row")
    assert said in row.message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("b.avi 3", "'3' after the name is not 0, 1 or 2"),
        ("b.avi", "after the name is not 0, 1 or 2"),
        ("../brush_hair/b.avi 1", "is no file in the folder of its class"),
        ("a.avi 2", "clap/a.avi is train in this split at hmdb:clap_test_split1.txt:1"),
        ("a.avi 0", "clap/a.avi is train in this split"),
        ("a.avi 1", "clap/a.avi stands already"),
    ],
)
def test_bad_lines_of_hmdb51(tmp_path, line, said):
    listing = read_lists([hmdb(tmp_path / "hmdb", clap_test_split1=["a.avi 1", line])])
    assert [(clip.video, clip.memberships) for clip in listing.clips] == [("clap/a.avi", ("train1",))]
    assert said in listing.rejected[0].message
    assert listing.rejected[0].place == "hmdb:clap_test_split1.txt:2"


def test_layouts_that_cannot_be_read(tmp_path):
    (tmp_path / "empty" / "testTrainMulti_7030_splits").mkdir(parents=True)
    with pytest.raises(ListError, match="holds no split files of hmdb51"):
        read_lists([tmp_path / "empty"])
    both = hmdb(ucf(tmp_path / "both"), clap_test_split1=[])
    with pytest.raises(ListError, match="split files of ucf101 and hmdb51"):
        read_lists([both])
    root = ucf(tmp_path / "ucf")
    for lines in (["1 YoYo", "3 Archery"], ["1 YoYo", "2"], ["1 ../up"], ["1 .."], ["YoYo"]):
        write(root / "ucfTrainTestlist" / "classInd.txt", *lines)
        with pytest.raises(ListError, match=r"classInd\.txt:\d+: .* is not \d and the name of a class"):
            read_lists([root])
    for lines in ([], ["1 YoYo", "2 YoYo"]):
        write(root / "ucfTrainTestlist" / "classInd.txt", *lines)
        with pytest.raises(ListError, match="class list 'ucf101'"):
            read_lists([root])
    (root / "ucfTrainTestlist" / "classInd.txt").unlink()
    with pytest.raises(ListError, match="cannot be read as a list"):
        read_lists([root])


@settings(max_examples=60, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(lines=st.lists(st.text(st.characters(exclude_characters="\r\n"), max_size=30) | st.sampled_from(
    [f"{FLY} 1", f"{BOW} 3", FLY, "a.avi 1", "a.avi 2", "b.avi 0"]), max_size=12))  # fmt: skip
def test_any_lines_give_clips_and_named_rows(tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("lines")
    text = "\n".join(lines).encode(errors="replace")
    for root in (ucf(folder / "ucf"), hmdb(folder / "hmdb", clap_test_split1=[])):
        file = next(file for file in root.glob("*/*1.txt") if "test" not in file.name or root.name == "hmdb")
        file.write_bytes(text)
        listing = read_lists([root])
        assert len({clip.key for clip in listing.clips}) == len(listing.clips) <= len(lines)
        assert len({row.place for row in listing.rejected}) == len(listing.rejected)
        assert all(clip.memberships in ((), ("train1",), ("test1",)) for clip in listing.clips)
        assert reject_unknown_labels(listing, listing.classes[0]).clips == listing.clips


def test_memberships_are_a_closed_list():
    for mask in range(1 << len(MEMBERSHIPS)):
        assert membership_mask(memberships_of(mask)) == mask
    for wrong in (["train4"], ["test1", "train1"], ["train1", "train1"], [["train1"]], [None]):
        with pytest.raises(ValueError, match="memberships"):
            file_clip("a.avi", "x", memberships=wrong)


def prep(*arguments, status=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result.output


def keys_of(dataset, split=None):
    return {sample.key for sample in open_samples(str(dataset), split)}


def videos_of(dataset, split=None):
    return {json.loads(sample.read()["json"])["source"]["video"] for sample in open_samples(str(dataset), split)}


@pytest.fixture(scope="module")
def layouts(tmp_path_factory, make_video):
    """A tiny UCF-101 and HMDB-51 with real videos."""
    folder = tmp_path_factory.mktemp("layouts")
    video = make_video(folder / "video.avi", size="64x64", seconds=0.5)
    root = ucf(folder / "ucf", [f"{FLY} 1", f"{PUSH} 2"], [BOW, "YoYo/v_YoYo_g02_c01.avi"])
    write(root / "ucfTrainTestlist" / "trainlist02.txt", f"{BOW} 3")
    write(root / "ucfTrainTestlist" / "testlist02.txt", FLY)
    other = hmdb(
        folder / "hmdb", clap_test_split1=[f"{ODD} 1", f"{ODDER} 2"], clap_test_split2=[f"{ODD} 2", f"{ODDER} 0"]
    )
    for path in (*(root / "UCF-101" / path for path in (FLY, PUSH, BOW)), other / "clap" / ODD, other / "clap" / ODDER):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(video, path)
    return folder


RUN = ("--flow", "none", "--short-side", "64")


def test_a_dataset_of_ucf101(layouts, tmp_path):
    dataset = tmp_path / "dataset"
    prep("run", "--manifest", layouts / "ucf", "--output", dataset, *RUN)
    failed = {key: entry["reason"] for key, entry in read_ledger(dataset).items() if entry["reason"]}
    assert list(failed.values()) == ["missing"]
    assert next(iter(failed)).startswith("v_YoYo_g02_c01_")
    assert videos_of(dataset) == {FLY, PUSH, BOW}
    assert videos_of(dataset, "train1") == {FLY, PUSH}
    assert videos_of(dataset, "test1") == {BOW} == videos_of(dataset, "train2")
    assert videos_of(dataset, "test2") == {FLY}
    snapshot = read_snapshot(dataset)
    (shard,) = snapshot.shards
    with pytest.raises(FormatError, match="memberships that this program does not know"):
        snapshot_from_json({**snapshot.to_json(), "memberships": ["fold1"]}, "snapshot")
    assert snapshot.to_json()["memberships"] == list(MEMBERSHIPS)
    assert snapshot_from_json(snapshot.to_json(), "snapshot") == snapshot
    assert keys_of(dataset / shard.path, "train1") == keys_of(dataset, "train1")
    assert [int(sample.record["class_index"]) for sample in open_samples(str(dataset), "test1")] == [2]
    assert trainable_samples(open_samples(str(dataset), "train1"), ("rgb",)).splits == ("train1",)
    with pytest.raises(FormatError, match=r"several splits \(test1, test2, train1, train2\)"):
        trainable_samples(open_samples(str(dataset)), ("rgb",))
    for wrong in ("test3", "val"):
        with pytest.raises(FormatError, match=f"no sample of split '{wrong}'; there are test1, test2, train1, train2"):
            open_samples(str(dataset), wrong)


@pytest.mark.slow
def test_memberships_stay(layouts, tmp_path, make_video):
    """Through runs with other lists, compaction, takedowns, and reprocessing."""
    dataset, other = tmp_path / "dataset", tmp_path / "other"
    prep("run", "--manifest", layouts / "hmdb", "--output", dataset, *RUN)
    train, test = keys_of(dataset, "train1"), keys_of(dataset, "test1")
    assert {len(train), len(test), len(train | test)} == {1, 2}
    (tmp_path / "more" / "clap").mkdir(parents=True)
    make_video(tmp_path / "more" / "clap" / "own.mp4", size="64x64", seconds=0.5)
    prep("run", "--manifest", tmp_path / "more", "--output", dataset, *RUN)
    prep("compact", dataset)
    prep("run", "--source", f"dataset:{dataset}", "--output", other, *RUN)
    for place in (dataset, other):
        assert keys_of(place, "train1") == train == keys_of(place, "test2")
        assert keys_of(place, "test1") == test
        assert len(keys_of(place)) == 3
        prep("purge", place, "--", *train)
        assert keys_of(place, "test1") == test
        assert "0 problems" in prep("verify", place)
        with pytest.raises(FormatError, match=r"no sample of split 'train1'; there are \(none\), test1"):
            open_samples(str(place), "train1")
    shards = [read_snapshot(place).shards[0] for place in (dataset, other)]
    assert shards[0].sha256 == shards[1].sha256


def test_two_kinds_of_lists_want_a_class_list(layouts, tmp_path):
    said = prep("run", "--manifest", layouts / "ucf", layouts / "hmdb", "--output", tmp_path / "x", *RUN, status=1)
    assert "lists (ucf, hmdb) that bring classes of their own: say with --classes" in said
