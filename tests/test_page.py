"""The page that compares runs: what runs wrote, drawn and told apart; nothing of a stranger's that is not escaped."""

import json
import math
from html.parser import HTMLParser

import pytest
import torch
from click.testing import CliRunner

from manifests.page import Html
from model import I3D, save_run
from tests import golden
from train.cli import report_command, train_command
from train.eval_command import evaluate_command
from train.page import read_runs, write_page
from train.run import identity
from train.stream import open_samples, trainable_samples

BAD = "<script>alert(1)</script>\"'&<img src=x>"
VOID = {"meta", "link", "img", "br", "path", "circle", "polyline", "rect"}


def command(which, *arguments, status=0):
    result = CliRunner().invoke(which, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output + repr(result.exception)
    return result.output


class Page(HTMLParser):
    """Tables by the heading above them, charts by their names, pictures, and all text of a page."""

    def __init__(self, path):
        super().__init__()
        self.tables, self.charts, self.pictures, self.tags, self.text = {}, {}, [], set(), ""
        self.heading = self.words = self.chart = ""
        self.open = []
        self.feed(path.read_text())
        assert not self.open

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.add(tag)
        self.words = ""
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.setdefault(self.heading, []).append([])
        elif tag == "tr":
            self.tables[self.heading][-1].append([])
        elif tag == "svg":
            self.chart = values["aria-label"]
        elif tag == "g":
            self.colour = values["stroke"]
        elif tag == "polyline":
            points = [tuple(map(float, point.split(","))) for point in values["points"].split()]
            self.charts.setdefault(self.chart, {})[self.colour, values["stroke-dasharray"]] = points
        elif tag == "img":
            self.pictures.append(values)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_data(self, data):
        self.words += data
        self.text += data

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "h2":
            self.heading = self.words
        elif tag in ("td", "th"):
            self.tables[self.heading][-1][-1].append(self.words)


def config(**changes):
    configuration = {"stream": "rgb", "batch_size": 8, "crop": 48, "learning_rate": 0.1, "validation": None}
    session = {"steps": 10, "validation_shards": None}
    return {"configuration": {**configuration, **changes}, "session": session, "versions": {"torch": "2"}}


def step(number, **changes):
    values = {"step": number, "epoch": number / 5, "loss": 2 / number, "lr": 0.1, "gradient_norm": 1.0}
    return {**values, "seconds": 0.5, "waiting_seconds": 0.125, **changes}


def evaluated(number, **values):
    return {"step": number, "mean_loss": 1.5, "lr": 0.1, "seconds": 1.0, **values}


def run_folder(folder, lines=(), quarantine=(), **changes):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config(**changes)))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if quarantine:
        (folder / "quarantine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in quarantine))
    return folder


def page_of(*folders, **options):
    output = folders[0].parent / "page.html"
    command(report_command, *folders, "--output", output, *options)
    return Page(output)


@pytest.fixture(scope="module")
def validated(tmp_path_factory):
    """A run of each stream whose best network, an untrained one, belongs to real validation clips."""
    folder = tmp_path_factory.mktemp("validated")
    torch.manual_seed(0)
    for stream, channels in (("rgb", 3), ("flow", 2)):
        samples = trainable_samples(open_samples(str(golden.DATASET), "val"), (stream,))
        run = run_folder(folder / stream, [step(1)], stream=stream, validation=identity(samples))
        edit(run, "session", validation_shards=str(golden.DATASET))
        save_run(run / "best.pt", I3D(4, channels).eval(), samples.classes.labels)
    return folder


@pytest.mark.slow
def test_two_real_runs(tmp_path):
    data = ["--shards", golden.DATASET, "--split", "train", "--val-shards", golden.DATASET, "--val-split", "val"]
    size = ["--steps", 2, "--batch-size", 2, "--frames", 9, "--crop", 48, "--workers", 0, "--evaluate-every", 2]
    for stream in ("rgb", "flow"):
        command(train_command, *data, *size, "--stream", stream, "--output", tmp_path / stream, "--lr", 0.001)
    page = page_of(tmp_path / "rgb", tmp_path / "flow")
    head, *rows = page.tables[""][0]
    assert [row[:3] for row in rows] == [["rgb", "rgb", "2 of 2"], ["flow", "flow", "2 of 2"]]
    assert all(float(row[head.index("Clips/s")]) > 0 for row in rows)
    assert {len(curves) for curves in page.charts.values()} == {2}
    assert list(page.charts) == [
        "Training loss, mean of 10 steps",
        "Loss of held-out clips",
        "Held-out clips right",
        "Learning rate",
        "Clips a second, mean of 10 steps",
        "Share of the time waiting for data, mean of 10 steps",
    ]
    differs, *same = page.tables["What differs"]
    assert ["stream", "rgb", "flow"] in differs
    assert not any(row[0] == "learning_rate" for row in differs)
    assert ["schedule.base_rate", "0.001"] in [row for table in same for row in table]
    assert len(page.pictures) == 1 + 4


def test_clips_with_what_each_run_says(validated, tmp_path):
    page = page_of(validated / "rgb", validated / "flow")
    clips = page.pictures[1:]  # after the colour wheel
    assert all(clip["src"].startswith("data:image/jpeg;base64,") for clip in clips)
    assert len({clip["alt"].partition(":")[0] for clip in clips}) == 4  # a clip of each class
    data = ("--shards", golden.DATASET, "--split", "val", "--crop", 48, "--json", tmp_path / "found.json")
    command(evaluate_command, *data, "--rgb", validated / "rgb" / "best.pt", "--flow", validated / "flow" / "best.pt")
    for clip in json.loads((tmp_path / "found.json").read_text())["clips"]:
        said = " · ".join(
            f"{stream}: {answer['label']} {answer['probability']:.0%} {'✗✓'[answer['label'] == clip['label']]}"
            for stream, answer in clip["streams"].items()
        )
        assert f"{clip['label']} · {said}{clip['key']}" in page.text
    content = (validated / "page.html").read_text()
    assert len(content.encode()) < 2_000_000
    assert "http" not in content
    assert "color-scheme: light dark" in content
    assert 'name="viewport"' in content


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda run: (run / "best.pt").unlink(), "there is no best.pt"),
        (lambda run: replace(run / "best.pt", b"PK\x03\x04"), "best.pt"),
        (lambda run: edit(run, "session", validation_shards="/nowhere"), "/nowhere"),
        (lambda run: edit(run, "session", validation_shards=None), "does not say where"),
        (lambda run: edit(run, "session", validation_shards=7), "does not say where"),
        (lambda run: edit(run, "configuration", crop="48"), "crop '48'"),
        (lambda run: edit(run, "configuration", crop=4800), "smaller than the crop"),
        (lambda run: edit(run, "configuration", validation=None), "was not validated"),
        (lambda run: edit(run, "configuration", validation={"sha256": "0", "split": "val"}), "holds other clips"),
        (lambda run: edit(run, "configuration", stream="rgb"), "best.pt"),
    ],
)
def test_clips_that_cannot_be_shown_are_left_out_with_the_reason(validated, tmp_path, change, said):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "metrics.jsonl"):
        (run / name).write_bytes((validated / "flow" / name).read_bytes())
    (run / "best.pt").symlink_to(validated / "flow" / "best.pt")
    change(run)
    page = page_of(run)
    assert said in page.text.partition("Clips")[2]
    assert not page.pictures
    assert page.charts


def replace(file, content):
    file.unlink()
    file.write_bytes(content)


def edit(run, part, **changes):
    content = json.loads((run / "config.json").read_text())
    content[part].update(changes)
    (run / "config.json").write_text(json.dumps(content))


def test_no_clips_wanted(validated, tmp_path):
    output = tmp_path / "none.html"
    command(report_command, validated / "rgb", "--output", output, "--clips", 0)
    assert not Page(output).pictures


def test_best_and_last_evaluation(tmp_path):
    losses = [0.9, 0.4, 0.7]
    lines = [evaluated(n, val_loss=loss, val_top1=n / 4, val_top5=1.0) for n, loss in enumerate(losses, start=1)]
    one = run_folder(tmp_path / "one", [*map(step, range(1, 4)), *lines])
    two = run_folder(tmp_path / "two", [evaluated(1, mean_loss=3.0), evaluated(2, mean_loss=2.0)])
    head, *rows = page_of(one, two).tables["Evaluations"][0]
    assert head == ["Run", "Evaluation", "Step", "Training loss", "Loss", "Top-1", "Top-5"]
    assert rows == [
        ["one", "best", "2", "1.5000", "0.4000", "50 %", "100 %"],
        ["one", "last", "3", "1.5000", "0.7000", "75 %", "100 %"],
        ["two", "best and last", "2", "2.0000", "–", "–", "–"],
    ]


def test_speed_is_of_all_steps_together(tmp_path):
    slow = run_folder(tmp_path / "run", [step(1, seconds=3.0, waiting_seconds=0.0), step(2, seconds=1.0)])
    page = page_of(slow)
    head, row = page.tables[""][0]
    assert (row[head.index("Clips/s")], row[head.index("Waiting for data")]) == ("4", "3.1 %")


def test_rates_stand_at_powers_of_ten_and_fall_at_once(tmp_path):
    lines = [step(n, lr=0.1 if n <= 50 else 0.01 if n <= 80 else 0.001) for n in range(1, 101)]
    (points,) = page_of(run_folder(tmp_path / "run", lines)).charts["Learning rate"].values()
    assert len(points) == 6
    heights = [y for _, y in points]
    assert heights[0] == heights[1] < heights[2] == heights[3] < heights[4] == heights[5]
    assert heights[2] - heights[0] == pytest.approx(heights[4] - heights[2], abs=0.2)
    assert points[2][0] - points[1][0] < 7  # a step


def test_a_run_looks_the_same_in_all_charts(tmp_path):
    steps = [step(n) for n in range(1, 5)]
    folders = [run_folder(tmp_path / f"{n}", steps + [evaluated(4, val_loss=1.0)] * (n % 3 > 0)) for n in range(20)]
    page = page_of(*folders)
    looks = list(page.charts["Training loss, mean of 10 steps"])
    assert len(set(looks)) == 20
    assert list(page.charts["Loss of held-out clips"]) == [look for n, look in enumerate(looks) if n % 3]


def test_long_runs_make_small_pages(tmp_path):
    runs = [run_folder(tmp_path / f"{n}", [step(i, lr=0.1 / i) for i in range(1, 10_001)]) for n in range(2)]
    page = page_of(*runs)
    assert {len(points) for curves in page.charts.values() for points in curves.values()} == {300}
    assert "Training loss, mean of 100 steps" in page.charts
    assert len((tmp_path / "page.html").read_bytes()) < 100_000


def test_clips_are_left_out_where_the_page_would_be_too_large(tmp_path):
    runs = read_runs([run_folder(tmp_path / "run", [step(1)])])
    write_page(runs, tmp_path / "page.html", [Html(f"<p>{n}{'x' * 900_000}</p>") for n in range(4)])
    assert 1_800_000 < (tmp_path / "page.html").stat().st_size < 2_000_000
    assert "2 more clips would make the page larger than 2 MB." in Page(tmp_path / "page.html").text


def test_samples_left_out_are_named(tmp_path):
    samples = [{"key": f"clip{n}", "shard": "a.tar", "message": "CRC"} for n in range(300)]
    page = page_of(run_folder(tmp_path / "run", quarantine=samples))
    assert page.tables[""][0][1][-1] == "300"
    rows = [row for table in page.tables["Samples left out"] for row in table[1:]]
    assert rows[0] == ["run", "clip0", "a.tar", "CRC"]
    assert len(rows) == 200
    assert "And 100 more." in page.text


def test_an_unfinished_last_line_does_not_count(tmp_path):
    run = run_folder(tmp_path / "run", [step(1, loss=1.5)])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert [line["step"] for line in read_runs([run])[0].lines] == [1]


def test_what_strangers_wrote_is_escaped(tmp_path):
    hostile = {"key": BAD + "\ud800", "shard": BAD, "message": BAD + "\x1b[2J\x00"}
    folder = run_folder(
        tmp_path / BAD.replace("/", "_"), [step(1), evaluated(1, val_loss=1.0)], [hostile], precision=BAD
    )
    edit(folder, "versions", **{BAD: "\ud800"})
    edit(folder, "session", validation_shards=BAD)
    edit(folder, "configuration", validation={"sha256": BAD, "split": BAD, "snapshot": BAD})
    other = run_folder(tmp_path / "other", [step(1)])
    page = page_of(folder, other)
    assert not {"script", "img"} & page.tags
    assert page.tables[""][0][1][0] == folder.name
    assert page.tables["Samples left out"][0][1][1] == BAD + "\\ud800"
    assert BAD in {cell for row in page.tables["What differs"][0] for cell in row}
    assert "\x1b" not in page.text


def test_runs_of_one_name_are_told_apart(tmp_path):
    folders = [run_folder(tmp_path / name / "rgb", [step(1)]) for name in ("a", "b")]
    assert [run.name for run in read_runs(folders)] == ["a/rgb", "b/rgb"]


def test_a_run_that_has_just_begun(tmp_path):
    run = run_folder(tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    assert page_of(run).tables[""][0][1][2] == "0 of 10"


def damaged(tmp_path, name, content):
    run = run_folder(tmp_path / "run", [step(1)])
    (run / name).write_text(content)
    return run


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", "", "config.json"),
        ("config.json", "[]", "config.json"),
        ("config.json", "[" * 100_000, "config.json"),
        ("config.json", '{"configuration": ' * 900 + "1" + "}" * 900, "config.json"),
        ("config.json", json.dumps({**config(), "session": 3}), "session is 3"),
        ("config.json", " " * 2_000_000 + json.dumps(config()), "2000"),
        ("config.json", json.dumps(config(stream=["rgb"])), "stream ['rgb']"),
        ("config.json", json.dumps(config(batch_size="8")), "batch_size 8"),
        ("config.json", json.dumps(config(batch_size=0)), "batch_size 0"),
        ("config.json", json.dumps(config(batch_size=10**400)), "batch_size 1000"),
        ("config.json", json.dumps(config(batch_size=math.inf)), "batch_size inf"),
        ("metrics.jsonl", "no\n", "line 1"),
        ("metrics.jsonl", "[" * 100_000 + "\n", "line 1 is no metrics"),
        ("metrics.jsonl", json.dumps(step(1)) + '\n{"step": "2"}\n', "line 2"),
        ("metrics.jsonl", json.dumps(step(1, step=1.5)) + "\n", "step 1.5"),
        ("metrics.jsonl", json.dumps(step(1, step=-1)) + "\n", "step -1"),
        ("metrics.jsonl", json.dumps(step(1, loss=math.nan)) + "\n", "loss of step 1 is nan"),
        ("metrics.jsonl", json.dumps(step(1, loss=math.inf)) + "\n", "loss of step 1 is inf"),
        ("metrics.jsonl", json.dumps(step(1, loss=1e300)) + "\n", "1e+300"),
        ("metrics.jsonl", json.dumps(step(1, seconds=10**400)) + "\n", "seconds of step 1"),
        ("metrics.jsonl", json.dumps(step(1, lr=-0.1)) + "\n", "lr of step 1 is -0.1"),
        ("metrics.jsonl", json.dumps(step(1, seconds=5e-324)) + "\n", "seconds of step 1 is 5e-324"),
        ("metrics.jsonl", json.dumps(step(1, lr=True)) + "\n", "lr of step 1 is True"),
        ("metrics.jsonl", json.dumps(evaluated(1, val_top1=1.5)) + "\n", "val_top1 of step 1 is 1.5, not from 0 to 1"),
        ("quarantine.jsonl", "no\n", "line 1"),
        ("quarantine.jsonl", '{"key": 1}\n', "line 1"),
        ("quarantine.jsonl", '{"key": "a", "shard"', "line 1"),
        ("quarantine.jsonl", "x" * 100_000, "longer than"),
    ],
)
def test_damaged_folders_are_refused_by_name(tmp_path, name, content, said):
    run = damaged(tmp_path, name, content)
    output = command(report_command, run, "--output", tmp_path / "page.html", status=1)
    assert said in output
    assert str(run) in output
    assert "Traceback" not in output
    assert not (tmp_path / "page.html").exists()


def test_folders_that_are_none_of_a_run(tmp_path):
    (tmp_path / "empty").mkdir()
    run = run_folder(tmp_path / "run", [step(1)])
    many = [run_folder(tmp_path / f"{n}") for n in range(21)]
    for folders, said in (
        ([tmp_path / "empty"], "it has no config.json"),
        ([tmp_path / "nowhere"], "it is no folder"),
        ([run, tmp_path / "empty" / ".." / "run"], "named more than once"),
        (many, "at most 20"),
    ):
        assert said in command(report_command, *folders, "--output", tmp_path / "page.html", status=1)
    said = command(report_command, run, "--output", run / "best.pt", status=1)
    assert "best.pt: the page's name must end in .html" in said
