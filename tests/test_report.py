"""The report page: totals that add up, the exact lists, nothing of a stranger's that is not escaped."""

import csv
from html.parser import HTMLParser

import numpy as np
import pytest
from click.testing import CliRunner

from manifests.clip import file_clip, youtube_clip
from manifests.index import published_keys, read_snapshot
from manifests.lists import Listing, Rejected, read_lists
from manifests.storage import open_output
from pipeline.cli import main
from pipeline.ledger import Outcome, record_outcomes, record_rejected, record_withdrawn
from pipeline.report import duration_counts, write_report

STORED = {"frames": 250, "duplicated": 0, "dropped": 0, "rgb_bytes": 1000, "flow_bytes": 500}


def prep(*arguments, status=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output + repr(result.exception)
    return result.output


class Page(HTMLParser):
    """Tables by the heading above them, cards, links and paragraphs of a page."""

    def __init__(self, path):
        super().__init__()
        self.tables, self.cards, self.links, self.tags, self.heading, self.text = {}, {}, [], set(), "", ""
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.text = ""
        if tag == "table":
            self.tables.setdefault(self.heading, []).append([])
        elif tag == "tr":
            self.tables[self.heading][-1].append([])
        elif tag == "a":
            self.links.append(dict(attributes))

    def handle_data(self, data):
        self.text += data

    def handle_endtag(self, tag):
        if tag in ("h2", "h3"):
            self.heading = self.text
        elif tag in ("td", "th"):
            self.tables[self.heading][-1][-1].append(self.text)
        elif tag == "b":
            self.number = self.text
        elif tag == "li":
            self.cards[self.text.removeprefix(self.number)] = self.number
        if tag not in ("pre", "span", "i"):
            self.text = ""

    def column(self, heading, name, table=0):
        """Numbers of a column, those of all its foldings together, and the total that stands below."""
        found, total = [], None
        for head, *rows in self.tables[heading][table:]:
            if name in head:
                for row in rows:
                    value = row[head.index(name)].replace(",", "")
                    if row[0] == "all":
                        total = int(value)
                    else:
                        found.append(int(value))
        return found, total


def clips_of(count, labels=("walk", "jump", None)):
    for number in range(count):
        label = labels[number % len(labels)]
        split = "test" if label is None else "train" if number % 5 else "val"
        yield youtube_clip(f"{number:011d}", 5, 15, label, split)


def record(folder, count=60):
    """A ledger of made-up outcomes: a fifth removed, a tenth corrupt, all others well; two rows are no clips."""
    outcomes = []
    for number, clip in enumerate(clips_of(count)):
        seconds = {"fetch": 1.0, "encode": 2.0, "flow": 36.0}
        stored = {**STORED, "frames": 250 - number % 7, "duplicated": number % 3 * 50, "dropped": number % 2}
        reason = "removed" if number % 5 == 1 else "corrupt" if number % 10 == 2 else None
        if reason:
            outcomes.append(Outcome(clip, reason, "ERROR: <b>gone</b>", {"fetch": 1.0}))
        else:
            outcomes.append(Outcome(clip, None, "", seconds, stored, {"ffmpeg": "5"}))
    record_outcomes(folder, outcomes)
    rows = [Rejected("a.csv", f"a.csv:{line}", "bad-row", "malformed") for line in (3, 4)]
    record_rejected(folder, Listing(rejected=rows, names=["a.csv"]))
    return outcomes


def test_totals_add_up_on_the_page(tmp_path):
    outcomes = record(tmp_path)
    page = Page(write_report(tmp_path))
    ok = sum(outcome.reason is None for outcome in outcomes)
    assert (page.cards["listed"], page.cards["ok"], page.cards["failed"]) == ("62", str(ok), str(60 - ok))
    assert page.cards["rows rejected"] == "2"
    assert page.cards["with flow"] == str(ok)
    assert page.column("Failures by reason", "Clips") == ([12, 6], 60 - ok)
    assert page.column("Rows that became no clip", "Rows") == ([2, 2], 2)
    for heading in ("Attrition", "Clips by class"):
        listed, well, failed = (page.column(heading, name) for name in ("Listed", "OK", "Failed"))
        assert (sum(listed[0]), sum(well[0]), sum(failed[0])) == (listed[1], well[1], failed[1]) == (60, ok, 60 - ok)
        assert [one + other for one, other in zip(well[0], failed[0], strict=True)] == listed[0]
    by_reason = [page.column("Failures by class and reason", name) for name in ("Failed", "removed", "corrupt")]
    assert [total for _, total in by_reason] == [60 - ok, 12, 6]
    assert [sum(values) for values, _ in by_reason] == [60 - ok, 12, 6]
    head, *rows = page.tables["Attempts"][0]
    assert rows == [["1", str(ok), str(60 - ok)]]
    assert page.tables["Seconds a stage"][0][1:] == [
        ["fetch", "60", "1.00 s", "1.00 s", "60.00 s"],
        ["encode", str(ok), "2.00 s", "2.00 s", "84.00 s"],
        ["flow", str(ok), "36.00 s", "36.00 s", "25.2 min"],
    ]
    duplicated = [outcome.stored["duplicated"] for outcome in outcomes if outcome.reason is None]
    head, *rows = page.tables["Duplicated and dropped frames"][0]
    assert rows[0][head.index("Frames in all")].replace(",", "") == str(sum(duplicated))
    assert rows[0][head.index("Clips with any")] == str(np.count_nonzero(duplicated))
    assert page.tables["Bytes"][0][-1][:3] == ["both", str(ok), f"{1.5 * ok:.3g} kB"]


def test_the_page_says_what_the_next_run_does(tmp_path):
    reasons = {"throttled": "tries again", "missing": "tries again", "removed": "--retry"}
    failed = zip(clips_of(3), reasons, strict=True)
    record_outcomes(tmp_path, (Outcome(clip, reason, "its message") for clip, reason in failed))
    page = Page(write_report(tmp_path))
    head, *rows = page.tables["Failures by reason"][0]
    place = head.index("The next run")
    assert {row[0]: row[place] for row in rows if row[0] != "all"} == reasons


def test_a_page_of_many_clips_names_few(tmp_path):
    classes = [f"class {number}" for number in range(400)]
    record_outcomes(tmp_path, (Outcome(clip, stored=STORED) for clip in clips_of(3000, classes)))
    path = write_report(tmp_path)
    page = Page(path)
    listed, total = page.column("Clips by class", "Listed")
    assert (len(listed), sum(listed), total) == (400, 3000, 3000)
    assert len(path.read_bytes()) < 100_000
    assert path.read_text().count("_000005_000015") == 0
    assert len((tmp_path / "report" / "clips.csv").read_text().splitlines()) == 3001


def test_what_strangers_wrote_is_escaped(tmp_path):
    bad = "<script>alert(1)</script>\"'&"
    clip = file_clip("a/<img src=x>.mp4", bad, split="val")
    outcomes = [Outcome(clip, "corrupt", bad, {bad: 1.0}, versions={bad: bad})]
    outcomes.append(Outcome(file_clip("b.mp4", bad), None, "", {}, STORED, {bad: bad}))
    record_outcomes(tmp_path, outcomes)
    record_rejected(tmp_path, Listing(rejected=[Rejected(bad, f"{bad}:3", "bad-row", bad)], names=[bad]))
    page = Page(write_report(tmp_path))
    assert not {"script", "img"} & page.tags
    assert bad in page.tables["Failures by reason"][0][1][-1]
    assert bad in {row[0] for row in page.tables["Clips by class"][0]}


def test_the_page_wants_nothing_from_outside(tmp_path):
    record(tmp_path)
    page = write_report(tmp_path)
    assert "http" not in page.read_text()
    links = Page(page).links
    assert [link["href"] for link in links] == [
        f"report/{name}.csv" for name in ("clips", "clips-unlabelled", "failures")
    ]
    assert all("download" in link and (tmp_path / link["href"]).is_file() for link in links)


def test_the_exact_list_names_what_came_out_well(tmp_path):
    outcomes = record(tmp_path)
    write_report(tmp_path)
    lists = [tmp_path / "report" / name for name in ("clips.csv", "clips-unlabelled.csv")]
    listing = read_lists(lists)
    assert not listing.rejected
    assert sorted(listing.clips, key=lambda clip: clip.key) == [o.clip for o in outcomes if o.reason is None]
    with (tmp_path / "report" / "failures.csv").open(newline="") as file:
        failures = {row["key"]: row for row in csv.DictReader(file)}
    assert failures.keys() == {o.clip.key for o in outcomes if o.reason} | {"a.csv:3", "a.csv:4"}
    assert failures["00000000001_000005_000015"]["message"] == "ERROR: <b>gone</b>"
    record_withdrawn(tmp_path, [outcome.clip.key for outcome in outcomes])
    write_report(tmp_path)
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["failures.csv"]


@pytest.mark.slow
def test_a_run_with_the_exact_list_gives_the_same_dataset(tmp_path, make_video):
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ('a "b", c.mp4', "d.mp4"):
        make_video(videos / name, seconds=1)
    (videos / "e.mp4").write_bytes(b"no video")
    listed = tmp_path / "mine.csv"
    listed.write_text(
        'path,label,start,end,split\n"a ""b"", c.mp4","walk, then run",0.25,0.758,val\n'
        '"a ""b"", c.mp4",jump,0,,train\nd.mp4,jump,0.1,,train\ne.mp4,jump,,,val\n'
    )
    run = ("run", "--source", videos, "--flow", "none", "--short-side", 32)
    prep(*run, "--manifest", listed, "--output", tmp_path / "one")
    prep("report", tmp_path / "one")
    exact = tmp_path / "one" / "report" / "clips-files.csv"
    assert "3 rows listed, 0 rejected" in prep(*run, "--manifest", exact, "--output", tmp_path / "two")
    one, two = (read_snapshot(tmp_path / name) for name in ("one", "two"))
    assert len(list(published_keys(tmp_path / "two", two))) == 3
    assert two.shards == one.shards


@pytest.mark.slow
def test_what_each_snapshot_added(tmp_path, make_video):
    folder = tmp_path / "in" / "walk"
    folder.mkdir(parents=True)
    run = ("run", "--manifest", tmp_path / "in", "--output", tmp_path / "out", "--flow", "none", "--short-side", 32)
    for name in ("a", "b"):
        make_video(folder / f"{name}.mp4", seconds=0.5)
        prep(*run)
    page = Page(write_report(tmp_path / "out"))
    assert [row[:3] for row in page.tables["Generations and snapshots"][0][1:]] == [
        ["0001", "1", "1"],
        ["0002", "1", "1"],
        ["all", "2", "2"],
    ]
    newest, first = page.tables["Snapshots, and what each added"][0][1:]
    assert (newest[0], newest[2], newest[4:]) == ("0002", "2", ["1", "0"])
    assert (first[0], first[2], first[4:]) == ("0001", "1", ["1", "0"])
    assert page.cards["snapshot"] == "0002"


def test_a_report_in_a_bucket(bucket):
    output = open_output(f"gs://{bucket.name}/k400")
    record(output)
    prep("report", output)
    names = {blob.name for blob in bucket.list_blobs(prefix="k400/report")}
    assert names == {
        "k400/report.html",
        *(f"k400/report/{name}.csv" for name in ("clips", "clips-unlabelled", "failures")),
    }


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        ([250], {"10–10.2 s": 1}),
        ([9, 249, 250, 250], {"0–1 s": 1, **{f"{s}–{s + 1} s": s == 9 for s in range(1, 10)}, "10–11 s": 2}),
        ([9, 15000], {"0–60 s": 1, **{f"{60 * i}–{60 * i + 60} s": i == 10 for i in range(1, 11)}}),
    ],
)
def test_durations_are_counted(frames, said):
    assert duration_counts(np.array(frames)) == said
