"""Tests of cells of several seeds, and of what is compared of two cells on the same clips."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from manifests.sample import FormatError
from train.cells import read_cells
from train.outcomes import outcome_of, weighted_interval
from train.scores import intervals
from train.tables import found_of
from train.tables_command import tables_command

LIST = """
[datasets.k]
shards = "k400"
train = "train"
test = "val"
paper = "Kinetics"

[datasets.ucf]
shards = "ucf101"
train = "train{split}"
test = "test{split}"
splits = [1, 2]
paper = "UCF-101"

[starts]
kinetics = "{output}/k/original-scratch/{model}-{stream}-seed{seed}/network.pt"

[[cells]]
datasets = ["k"]
settings = ["original"]
starts = ["scratch"]
models = ["two-stream", "i3d"]
streams = ["rgb", "flow", "both"]
seeds = [0, 7]

[[cells]]
datasets = ["ucf"]
settings = ["full-ft"]
starts = ["kinetics"]
models = ["i3d"]
streams = ["rgb"]
seeds = [0, 7]

[[cells]]
datasets = ["ucf"]
settings = ["original"]
starts = ["scratch"]
models = ["i3d"]
streams = ["rgb"]
seeds = [0, 7]

[[differences]]
title = "Two streams | flow"
datasets = ["k", "ucf"]
settings = ["original"]
starts = ["scratch"]
models = ["two-stream", "i3d"]
first = { stream = "both" }
second = { stream = "flow" }

[[differences]]
title = "Pre-training"
datasets = ["ucf"]
models = ["i3d"]
streams = ["rgb"]
first = { setting = "full-ft", start = "kinetics" }
second = { setting = "original", start = "scratch" }
"""


@pytest.fixture
def cells_file(tmp_path):
    file = tmp_path / "cells.toml"
    file.write_text(LIST)
    return file


def answers(rights, videos):
    """What i3d-eval writes of a test, as far as the figure of several needs it."""
    clips = [
        {"key": f"{video}_{n}", "label": "a", "video": video, "top5": [{"label": "a" if right else "b"}]}
        for n, (right, video) in enumerate(zip(rights, videos, strict=True))
    ]
    return {"top1": float(np.mean(rights)), "top5": 1.0, "clips": clips}


def test_the_figure_of_several_splits_is_their_mean_with_an_interval_over_all_videos():
    random = np.random.default_rng(5)
    rights = [random.random(300) < share for share in (0.5, 0.7, 0.9)]
    apart = found_of([answers(r, [f"{n}-{video}" for video in range(300)]) for n, r in enumerate(rights)])
    assert apart.top1 == pytest.approx(100 * np.mean(rights))
    error = 100 * (sum(r.var() for r in rights) / 300) ** 0.5 / 3
    assert (apart.low, apart.high) == pytest.approx((apart.top1 - 1.96 * error, apart.top1 + 1.96 * error), abs=0.5)
    # The same videos in each split, and each video as hard in all: three tests say no more than one.
    alike = found_of([answers(rights[0], [str(video) for video in range(300)])] * 3)
    error = 100 * (rights[0].var() / 300) ** 0.5
    assert (alike.low, alike.high) == pytest.approx((alike.top1 - 1.96 * error, alike.top1 + 1.96 * error), abs=0.5)


def test_of_one_test_the_interval_is_the_evaluations_own():
    random = np.random.default_rng(6)
    rights, videos = random.random(80) < 0.6, [f"video {n}" for n in random.integers(20, size=80)]
    own = intervals(np.where(rights, 0, 9), np.zeros(80, np.int64), videos)["top1"]
    assert weighted_interval([(1, outcome_of(answers(rights, videos)))]) == pytest.approx(tuple(own))


def test_one_video_says_nothing_of_others():
    first, second = outcome_of(answers([True, False], "vv")), outcome_of(answers([True, True], "vv"))
    assert weighted_interval([(0.5, first), (0.5, second)]) == (0, 1)
    assert weighted_interval([(1, first), (-1, second)]) == (-1, 1)


def test_each_seed_is_a_cell_that_begins_with_its_own_networks(cells_file):
    cells = {cell.name: " ".join(cell.command) for cell in read_cells(cells_file, Path("out")).cells}
    assert len(cells) == 12 + 4 + 4
    k = "out/k/original-scratch"
    assert (
        f"--rgb {k}/i3d-rgb-seed7/network.pt --flow {k}/i3d-flow-seed7/network.pt"
        in (cells["k/original-scratch/i3d-both-seed7"])
    )
    assert cells["ucf-2/full-ft-kinetics/i3d-rgb-seed7"].endswith(f"--init {k}/i3d-rgb-seed7/network.pt --seed 7")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("seeds = [0, 7]", "seeds = [-1]", "cells, number 1: seeds are [-1], want numbers from 0 on"),
        ("seeds = [0, 7]", "seeds = [0, 7]\noptions = { seed = 1 }", "seeds beside the option seed, which says it"),
        ("seeds = [0, 7]", "seeds = [7, 7]", "k/original-scratch/two-stream-rgb-seed7 stands in an earlier one"),
        ('title = "Pre-training"', "", "differences, number 2: title is None"),
        ("first = { stream = ", "first = { dataset = ", "first is {'dataset': 'both'}, want a table of any of setting"),
        ('{ stream = "flow" }', '{ stream = "depth" }', "second has stream 'depth', want one of rgb, flow, both"),
        ('{ stream = "flow" }', '{ model = "i3d" }', "first and second are not of the same"),
        ('{ stream = "flow" }', '{ stream = ["flow"] }', "second has stream ['flow'], want one of"),
        ("first = { stream", 'streams = ["rgb"]\nfirst = { stream', "streams beside first and second, which say it"),
        ('start = "scratch" }', 'start = "kinetics" }', "number 2: the list has no two cells, of one split and seed"),
        ("[[differences]]", "[differences]", "not a list of cells"),
    ],
)
def test_a_wrong_list_is_refused_with_the_place(cells_file, before, after, said):
    assert before in LIST
    cells_file.write_text(LIST.replace(before, after, 1))
    with pytest.raises(FormatError) as error:
        read_cells(cells_file, Path("out"))
    assert said in str(error.value)


def write_result(cell, right, videos):
    """As if the cell had been run, with these answers right."""
    found = answers(right, videos)
    low, high = intervals(np.where(right, 0, 9), np.zeros(len(right), np.int64), videos)["top1"]
    cell.folder.mkdir(parents=True)
    more = {
        "intervals": {"top1": [low, high]},
        "mean_class_accuracy": found["top1"],
        "labels": ["a", "b"],
        "confusion": [[int(np.sum(right)), int(np.sum(~right))], [0, 0]],
        "per_class": [{"label": "a", "clips_labelled": len(right), "top1": found["top1"]}],
        "clip_list": {"sha256": "0", "found": len(right), "unreadable": [], "missing": []},
        "split": "val",
        "snapshot": "0001",
        "checkpoints": {},
        "protocol": {"crop": 64},
    }
    (cell.folder / "result.json").write_text(json.dumps({**found, **more}))
    cell.note.write_text(cell.identity)


def rendered(cells_file, tmp_path):
    page, markdown = tmp_path / "page.html", tmp_path / "tables.md"
    options = ("--output", tmp_path / "out", "--page", page, "--markdown", markdown)
    ran = CliRunner().invoke(tables_command, [str(word) for word in ("render", cells_file, *options)])
    assert ran.exit_code == 0, ran.output
    return page.read_text(), markdown.read_text()


def test_two_cells_are_compared_clip_by_clip(cells_file, tmp_path):
    """The interval is of what differs: networks that fail on the same clips are told apart."""
    flow = np.arange(200) % 2 == 0  # half of the clips are right
    both = flow | (np.arange(200) < 20)  # and with RGB ten of the first twenty more
    videos = [str(n) for n in range(200)]
    cells = {cell.name: cell for cell in read_cells(cells_file, tmp_path / "out").cells}
    for seed, of_both in ((0, both), (7, flow)):
        write_result(cells[f"k/original-scratch/two-stream-flow-seed{seed}"], flow, videos)
        write_result(cells[f"k/original-scratch/two-stream-both-seed{seed}"], of_both, videos)
    write_result(cells["k/original-scratch/i3d-both-seed0"], both, videos)
    write_result(cells["k/original-scratch/i3d-flow-seed0"], flow[:50], videos[:50])
    page, markdown = rendered(cells_file, tmp_path)
    compared = markdown[markdown.index("**Two streams \\| flow.**") :]
    assert "Two streams | flow" in page
    row = re.search(
        r"\| k, original, scratch, two-stream \| \+2\.5 \[(\S+), (\S+)\] \| \+5\.0, 0\.0 \| 200 \|", compared
    )
    error = 50 * (both ^ flow).std() / 200**0.5  # half of it, the other seed's being none
    assert (float(row[1]), float(row[2])) == pytest.approx((2.5 - 1.96 * error, 2.5 + 1.96 * error), abs=0.2)
    assert "| k, original, scratch, i3d | +20.0 [" in compared  # of the clips that both tests are of
    assert compared.count("| 50 |") == 1
    assert "Pre-training" not in markdown  # nothing of it is done


def test_a_figure_of_several_seeds_is_their_mean_and_names_each(cells_file, tmp_path):
    videos = [str(n) for n in range(10)]
    cells = {cell.name: cell for cell in read_cells(cells_file, tmp_path / "out").cells}
    for seed, right in ((0, 4), (7, 8)):
        write_result(cells[f"k/original-scratch/i3d-rgb-seed{seed}"], np.arange(10) < right, videos)
    for split, seed, right in ((1, 0, 5), (2, 0, 7), (1, 7, 9)):
        write_result(cells[f"ucf-{split}/full-ft-kinetics/i3d-rgb-seed{seed}"], np.arange(10) < right, videos)
    markdown = rendered(cells_file, tmp_path)[1]
    assert re.search(r"Two-Stream I3D \| 60\.0 \[\S+ \S+\], of seeds 40\.0, 80\.0, top-5", markdown)
    # Of split 1 both seeds are done, of all splits one.
    assert re.search(r"I3D: RGB \| 70\.0 \[\S+ \S+\], of seeds 50\.0, 90\.0 \|", markdown)
    assert re.search(r"I3D, RGB, kinetics first \| 60\.0 \[\S+ \S+\] \(paper 95\.1", markdown)
