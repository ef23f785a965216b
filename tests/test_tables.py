"""Tests of lists of cells, of the commands that they are, and of the tables that are made of what was found."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from manifests.sample import FormatError
from tests import golden
from train.cells import read_cells
from train.paper import figures
from train.tables_command import tables_command

LIST = """
[datasets.k]
shards = "k400"
train = "train"
test = "val"
validation = "dev"
paper = "Kinetics"

[datasets.ucf]
shards = "ucf101-stored"
train = "train{split}"
test = "test{split}"
splits = [1, 2, 3]
paper = "UCF-101"

[starts]
kinetics = "{output}/k/original-scratch/{model}-{stream}/network.pt"

[options]
steps = 20
crop = 64
flip = false
fusion-weights = "rgb=1,flow=2"

[[cells]]
datasets = ["k"]
settings = ["original"]
starts = ["scratch"]
models = ["lstm", "i3d"]
streams = ["rgb", "flow", "both"]
options = { steps = 30, precision = "bf16" }

[[cells]]
datasets = ["ucf"]
settings = ["full-ft"]
starts = ["kinetics"]
models = ["i3d"]
streams = ["rgb"]
"""


@pytest.fixture
def cells_file(tmp_path):
    file = tmp_path / "cells.toml"
    file.write_text(LIST)
    return file


def test_a_list_is_commands_that_anybody_could_type(cells_file):
    cells = {cell.name: " ".join(cell.command) for cell in read_cells(cells_file, Path("out")).cells}
    k = "out/k/original-scratch"
    data = "--train-split train --test-split val --val-split dev"
    more = "--setting original --steps 30 --crop 64 --no-flip --precision bf16"
    tested = f"--rgb {k}/i3d-rgb/network.pt --flow {k}/i3d-flow/network.pt"
    train = "i3d-transfer --shards k400 --output"
    assert cells == {
        "k/original-scratch/lstm-rgb": f"{train} {k}/lstm-rgb {data} --model lstm --stream rgb {more}",
        "k/original-scratch/i3d-rgb": f"{train} {k}/i3d-rgb {data} --model i3d --stream rgb {more}",
        "k/original-scratch/i3d-flow": f"{train} {k}/i3d-flow {data} --model i3d --stream flow {more}",
        "k/original-scratch/i3d-both": f"i3d-eval --shards k400 --split val {tested} --json {k}/i3d-both/result.json "
        "--crop 64 --fusion-weights rgb=1,flow=2 --precision bf16",
        **{
            f"ucf-{n}/full-ft-kinetics/i3d-rgb": "i3d-transfer --shards ucf101-stored "
            f"--output out/ucf-{n}/full-ft-kinetics/i3d-rgb --train-split train{n} --test-split test{n} "
            f"--model i3d --stream rgb --setting full-ft --init {k}/i3d-rgb/network.pt --steps 20 --crop 64 --no-flip"
            for n in (1, 2, 3)
        },
    }


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("[options]", "[option]", "the file has 'option'"),
        ('"lstm", "i3d"', '"lstm", "c4d"', "models has 'c4d', want one of lstm, c3d"),
        ('shards = "k400"', "", "datasets.k: shards is missing"),
        ("{split}", "{spilt}", "'test{spilt}' has {spilt}, and nothing stands for it"),
        ("steps = 20", "steps = [20]", "options: steps = [20]"),
        ("steps = 20", '"--steps" = 20', "--steps"),
        ('paper = "UCF-101"', 'paper = "UCF101"', "paper is 'UCF101', want one of UCF-101, HMDB-51, Kinetics"),
        ("[1, 2, 3]", '["1"]', "splits are ['1']"),
        ('streams = ["rgb"]', "", "cells, number 2: streams is missing"),
        ("[datasets.ucf]", '[datasets."../ucf"]', "datasets.../ucf"),
        ('models = ["i3d"]', 'models = ["i3d", "i3d"]', "stands in an earlier one"),
        ("[[cells]]", "[[cells]", "not a list of cells"),
        ("steps = 20", "steps = " + 5000 * "1", "not a list of cells"),
        ("steps = 20", 'init = "x.pt"', "init = 'x.pt': a cell's place decides that"),
        ("[starts]", '[starts]\nscratch = "x.pt"', "starts.scratch is 'x.pt': scratch begins with nothing"),
        ('starts = ["kinetics"]', 'starts = ["scratch"]', "full-ft begins with a network of other data"),
        ('starts = ["kinetics"]', 'starts = ["kinetics"]\nsplits = [true]', "split True is none of"),
    ],
)
def test_a_wrong_list_is_refused_with_the_place(cells_file, before, after, said):
    assert before in LIST
    cells_file.write_text(LIST.replace(before, after))
    with pytest.raises(FormatError) as error:
        read_cells(cells_file, Path("out"))
    assert said in str(error.value)
    assert str(cells_file) in str(error.value)


def test_the_papers_figures_are_in_the_paper(shared):
    text = (shared / "paper" / "quo-vadis.txt").read_text()
    words = set(re.findall(r"\d+\.\d", text[text.index("4. Experimental Comparison") :]))
    numbers = [number for table in (2, 3, 4, 5) for score in figures(table).values() for number in score]
    assert len([number for number in numbers if number is not None]) == 31 + 17 + 6 + 54 + 12
    assert {f"{number:.1f}" for number in numbers if number is not None} <= words


def invoke(*arguments):
    return CliRunner().invoke(tables_command, [str(argument) for argument in arguments])


def test_cells_that_fail_are_named_and_those_that_need_them_wait(cells_file, tmp_path):
    few = (
        LIST.replace('"lstm", "i3d"', '"i3d"').replace('["rgb", "flow", "both"]', '["rgb"]').replace("[1, 2, 3]", "[2]")
    )
    for text in (few, few.replace("crop = 64", "crop = 48")):  # a mistake may be corrected
        cells_file.write_text(text)
        ran = invoke("run", cells_file, "--output", tmp_path / "out")
        assert ran.exit_code == 1
        assert "2 of 2 cells are missing" in ran.output
        assert "k/original-scratch/i3d-rgb: i3d-transfer ended with status 1; what it says is above" in ran.output
        assert re.search(r"ucf-2/full-ft-kinetics/i3d-rgb: \S+/i3d-rgb/network.pt is not there yet", ran.output)


def evaluated(rgb, flow):
    """What i3d-eval says of two clips of "a|b" and one of "<c>", with the answers of RGB and flow to them."""
    keys, labels = ("one", "two", "three"), ("a|b", "a|b", "<c>")
    clips = [
        {"key": key, "label": label, "video": key, "top5": [{"label": answer}]}
        for key, label, answer in zip(keys, labels, rgb or flow, strict=True)
    ]
    return {
        "top5": 1.0,
        "mean_class_accuracy": 0.5,
        "labels": ["a|b", "<c>"],
        "confusion": [[2, 0], [1, 0]],
        "per_class": [
            {"label": "a|b", "clips_labelled": 2, "top1": 1.0},
            {"label": "<c>", "clips_labelled": 1, "top1": 0.0},
        ],
        "clips": clips,
        "clip_list": {"sha256": "0", "found": 3, "unreadable": [], "missing": []},
        "split": "val",
        "snapshot": "0001",
        "checkpoints": {},
        "protocol": {"crop": 64},
    }


def write_results(file, output):
    """As if the cells had been run: RGB is right on one clip, what has flow on two."""
    for cell in read_cells(file, output).cells:
        rgb, flow = (("a|b", "<c>", "a|b"), None) if cell.place.stream == "rgb" else (None, ("a|b", "a|b", "a|b"))
        top1 = 1 / 3 if rgb else 2 / 3
        cell.folder.mkdir(parents=True)
        found = {"top1": top1, "intervals": {"top1": [top1 - 0.05, top1 + 0.05]}, **evaluated(rgb, flow)}
        (cell.folder / "result.json").write_text(json.dumps(found))
        cell.note.write_text(cell.identity)


@pytest.fixture
def done(cells_file, tmp_path):
    """Command line options of a list and of the folder that has all its results."""
    write_results(cells_file, tmp_path / "out")
    return cells_file, "--output", tmp_path / "out"


def rendered(done, tmp_path):
    page, markdown = tmp_path / "page.html", tmp_path / "tables.md"
    ran = invoke("render", *done, "--page", page, "--markdown", markdown)
    assert ran.exit_code == 0, ran.output
    return page.read_text(), markdown.read_text()


def test_what_is_done_is_not_done_again(done):
    ran = invoke("run", *done)
    assert (ran.exit_code, ran.output) == (0, "")
    assert "k/original-scratch/i3d-rgb: top-1 33.3 [28.3, 38.3]\n" in invoke("list", *done).output


def test_results_of_another_list_are_refused(done, cells_file):
    cells_file.write_text(LIST.replace("crop = 64", 'crop = 64\nlauncher = "torchrun"'))  # how is not what
    assert invoke("run", *done).exit_code == 0
    cells_file.write_text(LIST.replace("steps = 30", "steps = 31"))
    ran = invoke("run", *done)
    assert "3 of 7 cells are missing" in ran.output
    assert "k/original-scratch/lstm-rgb: " in ran.output
    assert "its result is of another list of cells" in ran.output
    assert "its result is of another list of cells" in invoke("list", *done).output


def test_tables_have_the_papers_figures_beside(done, cells_file, tmp_path):
    page, markdown = rendered(done, tmp_path)
    assert "| (e) Two-Stream I3D | 33.3 [28.3, 38.3], top-5 100.0 (paper 68.4, 88.0, −35.1) | 66.7 [" in markdown
    assert "| I3D, RGB, kinetics first | 33.3 [0.0, 100.0] (paper 95.1, −61.8) |" in markdown
    assert "| (e) Two-Stream I3D: RGB | 33.3 [28.3, 38.3] |" in markdown  # table 4, which has both streams' alone
    two = markdown[: markdown.index("Table 3")]
    assert "33.3 [28.3, 38.3] (Kinetics 71.1)" in two  # with ImageNet first, so nothing to subtract
    assert "Table 1" in page
    cells_file.write_text(LIST.replace('paper = "Kinetics"', 'paper = "Kinetics"\nsame = false'))
    for cell in read_cells(cells_file, tmp_path / "out").cells:
        cell.note.write_text(cell.identity)
    assert "33.3 [28.3, 38.3], top-5 100.0 (Kinetics 68.4, 88.0) |" in rendered(done, tmp_path)[1]


def test_the_page_shows_what_lies_behind_a_figure(done, tmp_path):
    page, _ = rendered(done, tmp_path)
    assert "<c>" not in page
    row = '<td>{}</td><td class="n" style="background:{}">{}</td><td class="n" style="background:{}">{}</td>'
    assert row.format("a|b", "#2a9d55c8", 2, "#d9541e00", 0) in page
    assert row.format("&lt;c&gt;", "#d9541ec8", 1, "#2a9d5500", 0) in page
    hardest = page[page.index("Hardest classes") :]
    assert hardest.index("&lt;c&gt;") < hardest.index("a|b")
    assert "<td>two</td><td>a|b</td><td>&lt;c&gt;</td><td>a|b</td>" in page  # flow alone is right
    assert "<li><b>0 %</b>RGB alone</li><li><b>33 %</b>flow alone</li><li><b>33 %</b>neither</li>" in page


def test_a_cell_of_no_table_is_shown(cells_file, tmp_path):
    cells_file.write_text(LIST.replace("kinetics", "mine"))
    write_results(cells_file, tmp_path / "out")
    _, markdown = rendered((cells_file, "--output", tmp_path / "out"), tmp_path)
    assert "| ucf-2/full-ft-mine/i3d-rgb | 33.3 [28.3, 38.3] |" in markdown


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ('{"top1": null}', "none of the clips has a label"),
        ('{"top1": NaN}', "not what this i3d-eval writes"),
        ('{"top1": 1e999, "top5": 1, "mean_class_accuracy": 1, "intervals": {"top1": [0, 1]}}', "shares of clips are"),
        ("[" * 100_000, "not what this i3d-eval writes"),
        (
            '{"top1": 1, "top5": 1, "mean_class_accuracy": 1, "intervals": {"top1": [0, 1]}, "clips": [{"key": "k"}]}',
            "not what this i3d-eval writes: KeyError('label')",
        ),
    ],
)
def test_a_result_that_is_none_is_named(done, tmp_path, changed, said):
    file = tmp_path / "out/k/original-scratch/lstm-rgb/result.json"
    file.write_text(changed)
    ran = invoke("list", *done)
    assert ran.exit_code == 1
    assert f"{file}: " in ran.output
    assert said in ran.output


def test_a_page_does_not_overwrite_its_list(done, cells_file, tmp_path):
    assert "not all different files" in invoke("render", *done, "--page", cells_file).output
    assert cells_file.read_text() == LIST


SMALL = f"""
[datasets.golden]
shards = "{golden.DATASET}"
train = "train"
test = "val"
paper = "UCF-101"
same = false

[starts]
kinetics = "{{output}}/golden/original-scratch/{{model}}-{{stream}}/network.pt"

[options]
crop = 32
batch-size = 2
steps = 2
rates = "0.001"
workers = 0

[[cells]]
datasets = ["golden"]
settings = ["original"]
starts = ["scratch"]
models = ["i3d"]
streams = ["rgb", "flow", "both"]
options = {{ frames = 9 }}

[[cells]]
datasets = ["golden"]
settings = ["full-ft"]
starts = ["kinetics"]
models = ["i3d"]
streams = ["rgb"]
options = {{ frames = 9 }}
"""


@pytest.mark.slow
def test_cells_are_run_tested_and_rendered(tmp_path):
    file = tmp_path / "cells.toml"
    file.write_text(SMALL)
    small = (file, "--output", tmp_path / "out")
    ran = invoke("run", *small)
    assert ran.exit_code == 0, ran.output
    found = {cell.name: json.loads((cell.folder / "result.json").read_text()) for cell in read_cells(*small[::2]).cells}
    alone, both = found["golden/original-scratch/i3d-rgb"], found["golden/original-scratch/i3d-both"]
    assert both["checkpoints"]["rgb"]["sha256"] == alone["checkpoints"]["rgb"]["sha256"]
    assert set(both["streams"]) == {"rgb", "flow"}
    tuned = found["golden/full-ft-kinetics/i3d-rgb"]
    assert tuned["initial"] == alone["checkpoints"]["rgb"]["sha256"]
    page, markdown = rendered(small, tmp_path)
    assert f"| {100 * tuned['top1']:.1f} [" in markdown
    assert page.count("<svg") == 2  # each group's curves of the loss
    assert "where RGB and flow disagree" in page
