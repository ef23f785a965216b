"""Clip lists: every row becomes a clip or a named reason, and every label an index of a pinned list."""

import json

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from manifests.classes import ClassList, published_classes, published_of_size, read_classes
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


def entry(label="yoga", segment=(84.0, 94.0), subset="validate", **more):
    annotations = {"segment": list(segment)} | ({"label": label} if label is not None else {})
    return {"annotations": annotations, "duration": 10.0, "subset": subset, "url": "https://example.org", **more}


def test_official_json(tmp_path):
    entries = {
        "---QUuC4vJs": entry(), "AAAAAAAAAAA": entry("cooking, on campfire", (0, 10), "train"),
        "BBBBBBBBBBB": entry(None, subset="test"), "CCCCCCCCCCC": {"annotations": {"segment": [1, 11]}},
    }  # fmt: skip
    listing = read_lists([write(tmp_path, "list", "\ufeff \n" + json.dumps(entries, indent=1) + "\n")])
    assert listing.rejected == []
    assert [(clip.key, clip.label, clip.split) for clip in listing.clips] == [
        ("---QUuC4vJs_000084_000094", "yoga", "val"),
        ("AAAAAAAAAAA_000000_000010", "cooking, on campfire", "train"),
        ("BBBBBBBBBBB_000084_000094", None, "test"),
        ("CCCCCCCCCCC_000001_000011", None, None),
    ]
    assert listing.places["---QUuC4vJs_000084_000094"] == "list:---QUuC4vJs"
    csv = write(tmp_path, "list.csv", K400 + "yoga,---QUuC4vJs,84,94,validate,0\n")
    assert read_lists([csv]).clips == listing.clips[:1]
    assert read_lists([write(tmp_path, "empty.json", " { } ")]).rows == 0


def test_an_id_that_stands_several_times_in_json(tmp_path):
    """Which a JSON object cannot say, so that `json` would keep the last one alone."""
    entries = [entry(), entry(segment=(0, 10)), entry(), entry(segment=(9, 5)), entry(segment=(9, 4))]
    text = "{" + ",".join(f'"AAAAAAAAAAA": {json.dumps(one)}' for one in entries) + "}"
    listing = read_lists([write(tmp_path, "k.json", text)])
    assert [clip.start_seconds for clip in listing.clips] == [84, 0]
    assert [(row.place, row.reason) for row in listing.rejected] == [
        ("k.json:AAAAAAAAAAA:3", "repeated-row"),
        ("k.json:AAAAAAAAAAA:4", "bad-row"),
        ("k.json:AAAAAAAAAAA:5", "bad-row"),
    ]
    assert "stands already at k.json:AAAAAAAAAAA" in listing.rejected[0].message


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("short", "{}", "no 'annotations'"),
        ("xxxxxxxxxxx", "[]", "the entry is of 0 values, not an object"),
        ("xxxxxxxxxxx", '{"annotations": "yoga"}', "annotations is 'yoga', not an object"),
        ("xxxxxxxxxxx", '{"annotations": {"label": "x"}}', "no 'segment'"),
        ("xxxxxxxxxxx", '{"annotations": {"segment": [0, 10, 20]}}', "segment of 3 values is not [start, end]"),
        ("xxxxxxxxxxx", '{"annotations": {"segment": ["0", 10]}}', "is not [start, end]"),
        ("xxxxxxxxxxx", '{"annotations": {"segment": [true, 10]}}', "is not [start, end]"),
        ("xxxxxxxxxxx", '{"annotations": {"segment": [NaN, 10]}}', "start nan is outside"),
        ("xxxxxxxxxxx", '{"annotations": {"segment": [0, Infinity]}}', "end inf is outside"),
        ("xxxxxxxxxxx", '{"annotations": {"segment": [0, 1e999]}}', "end inf is outside"),
        ("xxxxxxxxxxx", '{"annotations": {"segment": [0, ' + "9" * 5000 + "]}}", "end inf is outside"),
        ("xxxxxxxxxxx", '{"annotations": {"segment": [-1, 10]}}', "start -1.0 is outside"),
        ("xxxxxxxxxxx", '{"annotations": {"segment": [0.5, 10]}}', "start 0.5 is not a whole second"),
        ("xxxxxxxxxxx", '{"annotations": {"segment": [10, 10]}}', "start 10 is not before end 10"),
        ("xxxxxxxxxxx", '{"annotations": {"segment": [0, 9], "segment": [0, 10]}}', "has the key 'segment' twice"),
        ("xxxxxxxxxxx", '{"annotations": {"segment": [0, 9], "label": {"a": 1, "a": 2}}}', "label 'a' is no text"),
        ("xxxxxxxxxxx", '{"annotations": {"segment": [0, 9], "label": 3}}', "label 3.0 is no text"),
        ("xxxxxxxxxxx", '{"annotations": {"segment": [0, 9], "label": "\\ud800"}}', "printable"),
        ("xxxxxxxxxxx", '{"annotations": {"segment": [0, 9], "label": "x"}, "subset": []}', "subset of 0 values is no"),
        ("xxxxxxxxxxx", '{"annotations": {"segment": [0, 9], "label": "x"}, "subset": "../x"}', "malformed split"),
        ("xxxxxxxxxxx", '{"annotations": {"segment": [0, 9]}, "subset": "train"}', "no label in an entry of subset"),
        ("../../etc/pa", '{"annotations": {"segment": [0, 9]}}', "malformed id '../../etc/pa'"),
        ("\\u001b[31m:x", '{"annotations": {"segment": [0, 9]}}', "malformed id '\\x1b[31m:x'"),
        ("", '{"annotations": {"segment": [0, 9]}}', "malformed id ''"),
    ],
)
def test_bad_entries_of_json_are_named_and_the_others_go_on(tmp_path, name, value, said):
    good = json.dumps(entry())
    text = f'{{"AAAAAAAAAAA": {good}, "{name}": {value}, "BBBBBBBBBBB": {good}}}'
    listing = read_lists([write(tmp_path, "k.json", text)])
    assert [clip.video for clip in listing.clips] == ["AAAAAAAAAAA", "BBBBBBBBBBB"]
    (row,) = listing.rejected
    assert (row.list_name, row.reason) == ("k.json", "bad-row")
    assert row.place.startswith("k.json:")
    assert row.place.isprintable()
    assert row.place.count(":") == 1
    assert said in row.message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "line 1 column 2"),
        ('{"a" 1}', "expected :: line 1 column 6"),
        ('{"a": 1', "expected , or }"),
        ('{"a": 1,}', 'expected "'),
        ('{"a": }', "Expecting value"),
        ("{'a': 1}", 'expected "'),
        ('{"a": 1} {', "something after the object"),
        ('{"a": {"b": ' + "[" * 200_000, "nested too deeply"),
        ('{"a": {"b": ' + '{"c":' * 200_000, "nested too deeply"),
        ('{"a": "\n"}', "Invalid control character"),
        ('[{"a": 1}]', "belong to no known list"),
    ],
)
def test_what_is_no_json_object(tmp_path, text, said):
    with pytest.raises(ListError) as caught:
        read_lists([write(tmp_path, "k.json", text)])
    assert said in str(caught.value)
    assert "k.json" in str(caught.value)
    (tmp_path / "k.json").write_bytes(b'{"caf\xe9": 1}')
    with pytest.raises(ListError, match=r"k\.json: not JSON"):
        read_lists([tmp_path / "k.json"])


QUICK_TO_FAIL = Phase.explicit, Phase.reuse, Phase.generate
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["annotations", "segment", "label", "subset", "x"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=100, deadline=None, phases=QUICK_TO_FAIL)
@given(
    entries=st.lists(st.tuples(st.text(max_size=12) | st.sampled_from(["AAAAAAAAAAA"]), VALUES), max_size=4),
    cut=st.none() | st.integers(0, 80),
)
def test_any_json_gives_clips_and_named_rows_or_a_list_error(tmp_path_factory, entries, cut):
    path = tmp_path_factory.mktemp("json") / "k.json"
    path.write_text(("{" + ",".join(f"{json.dumps(key)}:{json.dumps(value)}" for key, value in entries) + "}")[:cut])
    try:
        listing = read_lists([path])
    except ListError:
        assert cut is not None  # it was whole otherwise
        return
    assert listing.rows == len(entries)
    assert len({row.place for row in listing.rejected} | set(listing.places.values())) == listing.rows


LINES = ("a,AAAAAAAAAAA,0,10,val", '"a",AAAAAAAAAAA,0,10,val', '"a,b",AAAAAAAAAAA,1,10,', "a,b,c,d,e", '"')


@settings(max_examples=100, deadline=None, phases=QUICK_TO_FAIL)
@given(
    lines=st.lists(st.text(st.characters(exclude_characters="\r\n"), max_size=40) | st.sampled_from(LINES), max_size=8)
)
def test_any_csv_gives_clips_and_named_rows(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("csv") / "k.csv"
    path.write_bytes((K600 + "\n".join(lines)).encode(errors="surrogatepass"))
    listing = read_lists([path])
    places = {row.place for row in listing.rejected} | set(listing.places.values())
    assert places == {f"k.csv:{number}" for number, line in enumerate(lines, 2) if line.strip()}


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


def test_the_classes_of_kinetics_700():
    """The publications say: 700 classes, all but three of the 600; here a fourth is spelt in another way."""
    k600, k700 = published_classes("kinetics600"), published_classes("kinetics700")
    assert len(k700.labels) == 700
    assert k700.labels == tuple(sorted(k700.labels))
    assert set(k600.labels) - set(k700.labels) == {
        "bull fighting", "chopping vegetables", "picking fruit", "passing american football (not in game)"
    }  # fmt: skip
    assert "passing American football (not in game)" in k700.index
    assert published_of_size(700) == k700


def test_folders_of_classes_with_the_names_of_the_mirror(tmp_path):
    """Labels with spaces and parentheses, names that start with dashes, and what macOS leaves in archives."""
    labels = ("passing American football (not in game)", "massaging person's head", "tying knot (not on a tie)")
    for label in labels:
        (tmp_path / "train" / label).mkdir(parents=True)
        (tmp_path / "train" / label / "--QUuC4vJs1_000084_000094.mp4").touch()
        (tmp_path / "train" / label / "._--QUuC4vJs1_000084_000094.mp4").touch()
    listing = reject_unknown_labels(read_lists([tmp_path / "train"]), published_classes("kinetics700"))
    assert sorted(clip.label for clip in listing.clips) == sorted(labels)
    assert len({clip.key for clip in listing.clips}) == 3
    assert listing.rejected == []


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
