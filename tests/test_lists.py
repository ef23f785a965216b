"""Clip lists: every row becomes a clip or a named reason, and every label an index of a pinned list."""

import pytest

from manifests.classes import ClassList, published_classes, read_classes
from manifests.clip import file_clip, youtube_clip
from manifests.lists import ListError, read_lists, reject_unknown_labels

K400 = "label,youtube_id,time_start,time_end,split,is_cc\n"
K600 = "label,youtube_id,time_start,time_end,split\n"
TEST = "youtube_id,time_start,time_end,split\n"


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "label", "split"),
    [
        (K400 + "testifying,---QUuC4vJs,84,94,validate,0\n", "testifying", "val"),
        (K600 + '"cooking, on campfire",---QUuC4vJs,84,94,train\n', "cooking, on campfire", "train"),
        (TEST + "---QUuC4vJs,84,94,test\n", None, "test"),
        ("label,youtube_id,time_start,time_end\nx,---QUuC4vJs,84.0,94\r\n", "x", None),
        ("\ufeff" + K600 + ",---QUuC4vJs,84,94,test\n\n", None, "test"),
    ],
)
def test_official_formats(tmp_path, text, label, split):
    listing = read_lists([write(tmp_path, "list.csv", text)])
    assert listing.rejected == []
    (clip,) = listing.clips
    assert (clip.key, clip.label, clip.split) == ("---QUuC4vJs_000084_000094", label, split)
    assert (clip.start_seconds, clip.end_seconds) == (84.0, 94.0)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("x,../../etc/pa,0,10,val", "malformed id '../../etc/pa'"),
        ("x,short,0,10,val", "malformed id 'short'"),
        ("x,--exec=rm_x1,0,10,val", "malformed id"),
        ("x,abcdefghijk,10,10,val", "start 10 is not before end 10"),
        ("x,abcdefghijk,20,10,val", "start 20 is not before end 10"),
        ("x,abcdefghijk,-5,10,val", "time_start '-5' is no number"),
        ("x,abcdefghijk,nan,10,val", "time_start 'nan' is no number"),
        ("x,abcdefghijk,0,inf,val", "time_end 'inf' is no number"),
        ("x,abcdefghijk,0,9999999,val", "end 9999999.0 is outside 0 to 999999 seconds"),
        ("x,abcdefghijk,1_0,20,val", "time_start '1_0' is no number"),
        (",abcdefghijk,0,10,val", "no label in a row of split 'val'"),
        ("a\u00a0b,abcdefghijk,0,10,val", "label 'a\\xa0b'"),
        ("a\x1b[31m,abcdefghijk,0,10,val", "label 'a\\x1b[31m'"),
        ("x,abcdefghijk,1.5,10,val", "start 1.5 is not a whole second"),
        ("x,abcdefghijk,ten,20,val", "time_start 'ten' is no number"),
        ("x,abcdefghijk,0,10,../val", "malformed split '../val'"),
        ("x,abcdefghijk,0,10,all", "split 'all'"),
        ("x,abcdefghijk,0,10", "4 values in a row of 5 columns"),
        ('x,"abcdefghijk,0,10,val', "unexpected end of data"),
    ],
)
def test_bad_rows_are_named_and_the_others_go_on(tmp_path, row, said):
    text = K600 + "a,AAAAAAAAAAA,0,10,val\n" + row + "\nb,BBBBBBBBBBB,0,10,val\n"
    listing = read_lists([write(tmp_path, "list.csv", text)])
    assert [clip.video for clip in listing.clips] == ["AAAAAAAAAAA", "BBBBBBBBBBB"]
    assert listing.rejected[0].place == "list.csv:3"
    assert listing.rejected[0].reason == "bad-row"
    assert said in listing.rejected[0].message


def test_line_numbers_survive_blank_lines(tmp_path):
    listing = read_lists([write(tmp_path, "list.csv", K600 + "\n  \nx,bad,0,10,val\n")])
    assert [row.place for row in listing.rejected] == ["list.csv:4"]
    assert "x,bad,0,10,val" in listing.rejected[0].message


def test_a_clip_is_listed_once(tmp_path):
    one = write(tmp_path, "one.csv", K600 + "a,AAAAAAAAAAA,0,10,val\na,AAAAAAAAAAA,5,15,val\n")
    two = write(tmp_path, "two.csv", K600 + "b,AAAAAAAAAAA,0,10,train\n")
    listing = read_lists([one, two])
    assert len(listing.clips) == 2
    (row,) = listing.rejected
    assert (row.place, row.reason) == ("two.csv:2", "repeated-row")
    assert "one.csv:2" in row.message
    assert "'a'" in row.message
    assert "'b'" in row.message
    assert listing.rows == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no header"),
        ("a,b,c\n", "belong to no known list"),
        ("youtube_id,time_start\n", "belong to no known list"),
        ("path,label,label\n", "belong to no known list"),
        ("youtube_id,time_start,time_end,extra\n", "belong to no known list"),
    ],
)
def test_unreadable_lists(tmp_path, text, said):
    with pytest.raises(ListError, match=said):
        read_lists([write(tmp_path, "list.csv", text)])


def test_binary_and_missing_lists(tmp_path):
    binary = tmp_path / "list.csv"
    binary.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ListError, match="belong to no known list"):
        read_lists([binary])
    binary.write_bytes(K600.encode() + b"caf\xe9,AAAAAAAAAAA,0,10,val\nyoga,BBBBBBBBBBB,0,10,val\n")
    listing = read_lists([binary])
    assert [clip.label for clip in listing.clips] == ["yoga"]
    assert "caf\\udce9" in listing.rejected[0].message
    with pytest.raises(ListError, match="cannot be read"):
        read_lists([tmp_path / "none.csv"])
    (tmp_path / "other").mkdir()
    good = write(tmp_path, "same.csv", TEST)
    with pytest.raises(ListError, match=r"two lists are called 'same\.csv'"):
        read_lists([good, write(tmp_path / "other", "same.csv", TEST)])


def test_own_list(tmp_path):
    text = (
        "path,label,start,end,split\n"
        "dir/My Clip #1!.mp4,a b,1.5,3.25,train\n"
        "dir/My Clip #1!.mp4,a b,,,train\n"
        "../up.mp4,a,,,\n"
        "/etc/passwd,a,,,\n"
        f"{tmp_path}/dir/inside.mp4,,,,\n"
        "-rf.mp4,a,3,2,\n"
    )
    listing = read_lists([write(tmp_path, "own.csv", text)])
    first, whole, inside = listing.clips
    assert first.key.startswith("My-Clip-1_")
    assert first.key != whole.key
    assert (first.start_seconds, first.end_seconds, whole.end_seconds) == (1.5, 3.25, None)
    assert (inside.video, inside.label, inside.folder) == ("dir/inside.mp4", None, str(tmp_path))
    assert [row.place for row in listing.rejected] == ["own.csv:4", "own.csv:5", "own.csv:7"]
    assert "outside" in listing.rejected[1].message


def test_folder_of_classes(tmp_path):
    for name in (
        "jump/a.mp4",
        "jump/-b.MOV",
        "run/a.mp4",
        "run/notes.txt",
        "loose.mp4",
        ".hidden/x.mp4",
        "run/deep/c.mp4",
    ):
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    listing = read_lists([tmp_path / "videos"])
    assert {(clip.video, clip.label) for clip in listing.clips} == {
        ("jump/a.mp4", "jump"),
        ("jump/-b.MOV", "jump"),
        ("run/a.mp4", "run"),
    }
    assert len({clip.key for clip in listing.clips}) == 3
    assert {row.place for row in listing.rejected} == {
        "videos:loose.mp4",
        "videos:run/notes.txt",
        "videos:run/deep",
    }


def test_folders_of_classes_may_be_links_and_names_may_be_odd(tmp_path):
    real = tmp_path / "real"
    real.mkdir()
    (real / "a.mp4").touch()
    (real / "caf\udce9\x1b.mp4").touch()
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "jump").symlink_to(real)
    listing = read_lists([tmp_path / "videos"])
    assert [clip.video for clip in listing.clips] == ["jump/a.mp4"]
    assert [row.place for row in listing.rejected] == ["videos:jump/caf\\udce9\\x1b.mp4"]


def test_keys_do_not_depend_on_the_machine():
    assert file_clip("a/b.mp4", "x", folder="/one").key == file_clip("a/b.mp4", "y", folder="/two").key
    assert youtube_clip("-_-_-_-_-_-", 3, 13, None, None).key == "-_-_-_-_-_-_000003_000013"


def test_groups_keep_unlabelled_clips_apart():
    groups = {file_clip("a.mp4", label, split=split).group for label in ("x", None) for split in ("val", None)}
    assert groups == {"val", "val-unlabelled", "all", "all-unlabelled"}
    with pytest.raises(ValueError, match="kept for clips without"):
        file_clip("a.mp4", "x", split="val-unlabelled")


def test_published_classes():
    k400, k600 = published_classes("kinetics400"), published_classes("kinetics600")
    assert (len(k400.labels), len(k600.labels)) == (400, 600)
    # The released networks' outputs: DeepMind's label map lists the classes in this order.
    assert k400.index["playing cricket"] == 227
    assert k400.labels[0] == "abseiling"


def test_unknown_labels_name_the_list_that_knows_them(tmp_path):
    text = K600 + "yarn spinning,AAAAAAAAAAA,0,10,val\nnonsense,BBBBBBBBBBB,0,10,val\nyoga,CCCCCCCCCCC,0,10,val\n"
    listing = reject_unknown_labels(read_lists([write(tmp_path, "k.csv", text)]), published_classes("kinetics400"))
    assert [clip.label for clip in listing.clips] == ["yoga"]
    yarn, nonsense = listing.rejected
    assert (yarn.place, yarn.reason) == ("k.csv:2", "unknown-label")
    assert "kinetics600 and kinetics700: pass --classes" in yarn.message
    assert "--classes" not in nonsense.message


@pytest.mark.parametrize("labels", [(), ("a", "b", "a"), ("a", ""), ("a", " b"), ("a", "b\n")])
def test_class_lists_are_checked(labels):
    with pytest.raises(ValueError, match="class list 'x'"):
        ClassList("x", labels)


def test_class_file(tmp_path):
    path = write(tmp_path, "mine.txt", "left\nright\n")
    assert read_classes(str(path)) == ClassList("mine", ("left", "right"))
    with pytest.raises(ValueError, match="neither one of kinetics400, kinetics600"):
        read_classes("kinetics401")
