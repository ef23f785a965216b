"""Tests of lists of cells, of the commands that they are, and of the tables that are made of what was found."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from manifests.sample import FormatError
from train.cells import read_cells
from train.paper import figures
from train.tables import found_of
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

[[cells]]
datasets = ["k"]
settings = ["original"]
starts = ["scratch"]
models = ["lstm", "i3d"]
streams = ["rgb", "flow", "both"]
options = { steps = 30 }

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
    data = "--shards k400 --train-split train --test-split val --val-split dev"
    more = f"--setting original --steps 30 --crop 64 --no-flip --output {k}"
    tested = f"--rgb {k}/i3d-rgb/network.pt --flow {k}/i3d-flow/network.pt"
    assert cells == {
        "k/original-scratch/lstm-rgb": f"i3d-transfer {data} --model lstm --stream rgb {more}/lstm-rgb",
        "k/original-scratch/i3d-rgb": f"i3d-transfer {data} --model i3d --stream rgb {more}/i3d-rgb",
        "k/original-scratch/i3d-flow": f"i3d-transfer {data} --model i3d --stream flow {more}/i3d-flow",
        "k/original-scratch/i3d-both": f"i3d-eval --shards k400 --split val {tested} --json {k}/i3d-both/result.json "
        "--crop 64",
        **{
            f"ucf-{n}/full-ft-kinetics/i3d-rgb": f"i3d-transfer --shards ucf101-stored --train-split train{n} "
            f"--test-split test{n} --model i3d --stream rgb --setting full-ft --init {k}/i3d-rgb/network.pt "
            f"--steps 20 --crop 64 --no-flip --output out/ucf-{n}/full-ft-kinetics/i3d-rgb"
            for n in (1, 2, 3)
        },
    }


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("[options]", "[option]", "the file has 'option'"),
        ('"lstm", "i3d"', '"lstm", "c4d"', "models has 'c4d', want one of lstm, c3d"),
        ('shards = "k400"', "", "datasets.k: shards is missing"),
        ("{split}", "{spilt}", "{spilt}' has braces"),
        ("steps = 20", "steps = [20]", "options: steps = [20]"),
        ("steps = 20", '"--steps" = 20', "--steps"),
        ('paper = "UCF-101"', 'paper = "UCF101"', "paper is 'UCF101', want one of UCF-101, HMDB-51, Kinetics"),
        ("[1, 2, 3]", '["1"]', "splits are ['1']"),
        ('streams = ["rgb"]', "", "cells, number 2: streams is missing"),
        ("[datasets.ucf]", '[datasets."../ucf"]', "datasets.../ucf"),
        ('models = ["i3d"]', 'models = ["i3d", "i3d"]', "stands in an earlier one"),
        ("[[cells]]", "[[cells]", "not a list of cells"),
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


def result(top1, low, high, **more):
    """What i3d-eval writes, as far as a table's figure needs it."""
    return {"top1": top1, "top5": 1.0, "intervals": {"top1": [low, high]}, **more}


def test_the_figure_of_several_splits_is_their_mean():
    found = found_of([result(0.5, 0.4, 0.6), result(0.7, 0.6, 0.8), result(0.9, 0.8, 1.0)])
    assert found.top1 == pytest.approx(70)
    assert (found.low, found.high) == pytest.approx((70 - 10 / 3**0.5, 70 + 10 / 3**0.5))


def invoke(*arguments):
    return CliRunner().invoke(tables_command, [str(argument) for argument in arguments])


def test_cells_that_fail_are_named_and_those_that_need_them_wait(cells_file, tmp_path):
    ran = invoke("run", cells_file, "--output", tmp_path / "out")
    assert ran.exit_code == 1
    assert "7 of 7 cells are missing" in ran.output
    assert "k/original-scratch/i3d-rgb: i3d-transfer ended with status 1" in ran.output
    assert re.search(r"ucf-2/full-ft-kinetics/i3d-rgb: \S+/i3d-rgb/network.pt is not there yet", ran.output)


def test_what_another_command_has_begun_is_refused(cells_file, tmp_path):
    invoke("run", cells_file, "--output", tmp_path / "out")
    cells_file.write_text(LIST.replace("crop = 64", "crop = 48"))
    ran = invoke("run", cells_file, "--output", tmp_path / "out")
    assert ran.exit_code == 1
    assert "was begun by another command" in ran.output


def write_result(cell, found):
    cell.folder.mkdir(parents=True)
    (cell.folder / "result.json").write_text(json.dumps(found))


def test_differences_stand_only_beside_the_same_data(cells_file, tmp_path):
    evaluated = {
        "mean_class_accuracy": 0.5,
        "labels": ["a|b", "c"],
        "confusion": [[1, 0], [1, 0]],
        "per_class": [
            {"label": "a|b", "clips_labelled": 1, "top1": 1.0},
            {"label": "c", "clips_labelled": 1, "top1": 0.0},
        ],
        "clips": [],
        "clip_list": {"sha256": "0", "found": 2, "missing": []},
        "split": "val",
        "snapshot": "0001",
        "checkpoints": {},
        "protocol": {},
    }
    for cell in read_cells(cells_file, tmp_path / "out").cells:
        write_result(cell, result(0.7, 0.65, 0.75, **evaluated))
    page, markdown = tmp_path / "page.html", tmp_path / "tables.md"
    render = ("render", cells_file, "--output", tmp_path / "out", "--page", page, "--markdown", markdown)
    assert invoke(*render).exit_code == 0
    text = markdown.read_text()
    assert "| (e) Two-Stream I3D | 70.0 [65.0, 75.0], top-5 100.0 (paper 68.4, 88.0, +1.6) |" in text
    assert "| I3D, RGB, kinetics first | 70.0 [67.1, 72.9] (paper 95.1, −25.1) |" in text
    assert "a|b" in page.read_text()
    assert "Table 1" in page.read_text()
    cells_file.write_text(LIST.replace('paper = "Kinetics"', 'paper = "Kinetics"\nsame = false'))
    assert invoke(*render).exit_code == 0
    assert "70.0 [65.0, 75.0], top-5 100.0 (paper 68.4, 88.0) |" in markdown.read_text()


def test_a_result_that_is_none_is_named(cells_file, tmp_path):
    cell = read_cells(cells_file, tmp_path / "out").cells[0]
    write_result(cell, {"top1": None})
    ran = invoke("list", cells_file, "--output", tmp_path / "out")
    assert ran.exit_code == 1
    assert f"{cell.folder}/result.json: not what i3d-eval writes" in ran.output
