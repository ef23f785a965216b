"""Tests of cells of several seeds, and of what is compared of two cells on the same clips."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from manifests.sample import FormatError
from train.cells import read_cells
from train.outcomes import Outcome, Term, interval_of_sum, of_common_clips, outcome_of
from train.scores import intervals
from train.tables import mean_of
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
title = "Two streams | *flow*"
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


def right_of(shares, clips=300):
    """Answers to clips, right in these shares, by chance."""
    random = np.random.default_rng(5)
    return [random.random(clips) < share for share in shares]


def interval_around(top1, error):
    return pytest.approx((top1 - 1.96 * error, top1 + 1.96 * error), abs=0.5)


def test_the_figure_of_several_splits_is_their_mean_with_an_interval_over_all_videos():
    rights = right_of((0.5, 0.7, 0.9))
    apart = mean_of({None: [answers(r, [f"{n}-{video}" for video in range(300)]) for n, r in enumerate(rights)]})
    assert apart.top1 == pytest.approx(100 * np.mean(rights))
    error = 100 * (sum(r.var() for r in rights) / 300) ** 0.5 / 3
    assert (apart.low, apart.high) == interval_around(apart.top1, error)
    # The same videos in each split, and each video as hard in all: three tests say no more than one.
    alike = mean_of({None: [answers(rights[0], [str(video) for video in range(300)])] * 3})
    error = 100 * (rights[0].var() / 300) ** 0.5
    assert (alike.low, alike.high) == interval_around(alike.top1, error)


def test_the_interval_of_several_seeds_knows_that_they_differ():
    rights = right_of((0.3, 0.6, 0.6))
    found = mean_of({seed: [answers(r, [str(video) for video in range(300)])] for seed, r in enumerate(rights)}, 4)
    shares = [100 * r.mean() for r in rights]
    assert list(found.by_seed.values()) == pytest.approx(shares)
    error = (np.var(shares) / 3 + 100**2 * sum(r.var() for r in rights) / 300 / 9) ** 0.5
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert found.of_seeds.endswith(" (3 of 4 seeds)")


def test_of_one_test_the_interval_is_the_evaluations_own():
    random = np.random.default_rng(6)
    rights, videos = random.random(80) < 0.6, [f"video {n}" for n in random.integers(20, size=80)]
    own = intervals(np.where(rights, 0, 9), np.zeros(80, np.int64), videos)["top1"]
    assert interval_of_sum([Term(1, None, outcome_of(answers(rights, videos)))]) == pytest.approx(tuple(own))


def test_too_few_videos_say_nothing_of_others():
    first, second = outcome_of(answers([True, False], "vv")), outcome_of(answers([True, True], "vv"))
    assert interval_of_sum([Term(0.5, None, first), Term(0.5, None, second)]) == (0, 1)
    assert interval_of_sum([Term(1, None, first), Term(-1, None, second)]) == (-1, 1)
    apart = [Term(0.2, None, outcome_of(answers([True, True], 2 * [str(split)]))) for split in range(5)]
    assert interval_of_sum(apart) == pytest.approx((0, 1))  # hardly a draw has a clip of each


def test_clips_that_two_tests_do_not_agree_on_are_refused():
    first = outcome_of(answers([True, False], "vw"))
    other = Outcome({key: ("b", video) for key, (_, video) in first.clips.items()}, first.right)
    with pytest.raises(ValueError, match=r"clip '\w_\d' is "):
        of_common_clips(first, other)
    assert of_common_clips(first, outcome_of(answers([True], "x"))) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: found["clips"].clear(), "top1 is 0.5, of 0 of 0 clips right"),
        (lambda found: found.update(top1=0.9), "top1 is 0.9, of 1 of 2 clips right"),
        (lambda found: found["clips"].append(found["clips"][0]), "not each of a key, a label and a video"),
        (lambda found: found["clips"][0].update(video=None), "not each of a key, a label and a video"),
        (lambda found: [clip.update(label=None) for clip in found["clips"]], "of 0 of 0 clips right"),
    ],
)
def test_a_test_that_contradicts_itself_is_refused(change, said):
    found = answers([True, False], "vw")
    change(found)
    with pytest.raises(ValueError, match=said):
        outcome_of(found)


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
        ("seeds = [0, 7]", "seeds = [-1]", "cells, number 1: seeds are [-1], want numbers from 0 to 4294967295"),
        ("seeds = [0, 7]", "seeds = [0, 7]\noptions = { seed = 1 }", "seeds beside the option seed, which says it"),
        ("seeds = [0, 7]", "seeds = [7, 7]", "k/original-scratch/two-stream-rgb-seed7 stands in an earlier one"),
        ('title = "Pre-training"', 'title = " "', "differences, number 2: title is ' '"),
        ('title = "Pre-training"', "", "differences, number 2: title is None"),
        ("first = { stream = ", "first = { dataset = ", "first is {'dataset': 'both'}, want a table of any of setting"),
        ('{ stream = "flow" }', '{ stream = "depth" }', "second has stream 'depth', want one of rgb, flow, both"),
        ('{ stream = "flow" }', '{ model = "i3d" }', "first and second want other values of the same"),
        ('{ stream = "flow" }', '{ stream = "both" }', "first and second want other values of the same"),
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
    videos = [str(n // 2) for n in range(200)]
    cells = {cell.name: cell for cell in read_cells(cells_file, tmp_path / "out").cells}
    write_result(cells["k/original-scratch/two-stream-flow-seed7"], flow, videos)
    write_result(cells["k/original-scratch/two-stream-both-seed7"], both, videos)
    write_result(cells["k/original-scratch/i3d-both-seed0"], both, videos)
    write_result(cells["k/original-scratch/i3d-flow-seed0"], flow[:50], videos[:50])
    page, markdown = rendered(cells_file, tmp_path)
    compared = markdown[markdown.index("**Two streams \\| \\*flow\\*.**") :]
    assert "Two streams | *flow*" in page
    row = re.search(
        r"\| k, original, scratch, two-stream \| \+5\.0 \[\+(\S+), \+(\S+)\] \(1 of 2 seeds\) \|  \| 200 \| 100 \|",
        compared,
    )
    error = 100 * (both ^ flow).reshape(100, 2).mean(1).std() / 100**0.5
    assert (float(row[1]), float(row[2])) == pytest.approx((5 - 1.96 * error, 5 + 1.96 * error), abs=0.5)
    # Of the clips that both tests are of.
    assert re.search(
        r"\| k, original, scratch, i3d \| \+20\.0 \[\S+ \S+\] \(1 of 2 seeds\) \|  \| 50 \| 25 \|", compared
    )
    assert "Pre-training" not in markdown  # nothing of it is done


def test_a_difference_is_the_mean_of_the_splits_of_those_seeds_that_are_done(cells_file, tmp_path):
    videos = [str(n) for n in range(10)]
    cells = {cell.name: cell for cell in read_cells(cells_file, tmp_path / "out").cells}
    for split, seed, scratch, tuned in ((1, 0, 5, 7), (2, 0, 4, 8), (1, 7, 5, 9)):
        write_result(cells[f"ucf-{split}/original-scratch/i3d-rgb-seed{seed}"], np.arange(10) < scratch, videos)
        write_result(cells[f"ucf-{split}/full-ft-kinetics/i3d-rgb-seed{seed}"], np.arange(10) < tuned, videos)
    each = r"split 1, seed 0: \+20\.0, split 2, seed 0: \+40\.0"
    row = rf"ucf, i3d, rgb \| \+30\.0 \[\S+ \S+\] \(1 of 2 seeds\) \| {each} \| 10 \|"
    assert re.search(row, rendered(cells_file, tmp_path)[1])


def test_tests_of_other_clips_are_not_compared(cells_file, tmp_path):
    cells = {cell.name: cell for cell in read_cells(cells_file, tmp_path / "out").cells}
    write_result(cells["k/original-scratch/i3d-both-seed0"], np.array([True]), ["a"])
    write_result(cells["k/original-scratch/i3d-flow-seed0"], np.array([True]), ["b"])
    assert "| no clips in common | seed 0 | 0 | 0 |" in rendered(cells_file, tmp_path)[1]


def test_a_figure_of_several_seeds_is_their_mean_and_names_each(cells_file, tmp_path):
    videos = [str(n) for n in range(10)]
    cells = {cell.name: cell for cell in read_cells(cells_file, tmp_path / "out").cells}
    for seed, right in ((0, 4), (7, 8)):
        write_result(cells[f"k/original-scratch/i3d-rgb-seed{seed}"], np.arange(10) < right, videos)
    for split, seed, right in ((1, 0, 5), (2, 0, 7), (1, 7, 9)):
        write_result(cells[f"ucf-{split}/full-ft-kinetics/i3d-rgb-seed{seed}"], np.arange(10) < right, videos)
    page, markdown = rendered(cells_file, tmp_path)
    assert "Two-Stream I3D, RGB, seed 7: 80.0 %" in page
    row = (
        r"Two-Stream I3D \| 60\.0 \[\S+ \S+\], top-5 100\.0 \(paper 68\.4, 88\.0, −8\.4\); seeds 0: 40\.0, 7: 80\.0 \|"
    )
    assert re.search(row, markdown)
    # Of split 1 both seeds are done, of all splits one.
    assert re.search(r"I3D: RGB \| 70\.0 \[\S+ \S+\]; seeds 0: 50\.0, 7: 90\.0 \|", markdown)
    row = r"I3D, RGB, kinetics first \| 60\.0 \[\S+ \S+\] \(paper 95\.1, −35\.1\); seeds 0: 60\.0 \(1 of 2 seeds\)"
    assert re.search(row, markdown)


def test_seeds_of_a_cell_of_no_table_are_one_row(cells_file, tmp_path):
    cells_file.write_text(LIST.replace('paper = "Kinetics"', ""))
    cells = {cell.name: cell for cell in read_cells(cells_file, tmp_path / "out").cells}
    for seed, right in ((0, 4), (7, 8)):
        write_result(
            cells[f"k/original-scratch/i3d-rgb-seed{seed}"], np.arange(10) < right, [str(n) for n in range(10)]
        )
    markdown = rendered(cells_file, tmp_path)[1]
    assert re.search(r"\| k/original-scratch/i3d-rgb \| 60\.0 \[\S+ \S+\]; seeds 0: 40\.0, 7: 80\.0 \|", markdown)


def test_rgb_and_flow_that_disagree_are_of_one_seed(cells_file, tmp_path):
    cells = {cell.name: cell for cell in read_cells(cells_file, tmp_path / "out").cells}
    one, other = np.arange(10) < 4, np.arange(10) < 8
    for name, right in (("rgb-seed0", one), ("rgb-seed7", one), ("flow-seed7", other)):
        write_result(cells[f"k/original-scratch/i3d-{name}"], right, [str(n) for n in range(10)])
    page = rendered(cells_file, tmp_path)[0]
    assert "Two-Stream I3D, seed 7: where RGB and flow disagree" in page


def test_a_cell_with_seeds_and_one_without_are_not_mixed(cells_file):
    group = LIST[LIST.index("[[cells]]") : LIST.index("[[cells]]", LIST.index("[[cells]]") + 1)]
    cells_file.write_text(LIST + group.replace("seeds = [0, 7]", ""))
    with pytest.raises(FormatError, match="two-stream-rgb stands in an earlier one, and one of them alone has seeds"):
        read_cells(cells_file, Path("out"))
