"""Held-out clips: whole videos, about the share of each class, the same in i3d-train and i3d-eval."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
from click.testing import CliRunner

from manifests.sample import FormatError
from pipeline.cli import main
from tests import golden
from train.cli import report_command, train_command
from train.eval_command import evaluate_command
from train.hold_out import hold_out
from train.log import read_metrics
from train.source_video import source_video
from train.stream import open_samples, read_json

LABELS = ("Jump", "Run")
GROUPS, CLIPS = 5, 2  # of each class, and of each group


def command(which, *arguments, status=0):
    result = CliRunner().invoke(which, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output + repr(result.exception)
    return result.output


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, make_video):
    """Clips named as those of UCF-101: two classes, five groups of two clips each."""
    folder = tmp_path_factory.mktemp("ucf")
    output = tmp_path_factory.mktemp("dataset")
    lines = ["path,label"]
    video = make_video(folder / "any.mp4", size="64x48", seconds=0.4)
    for label in LABELS:
        (folder / label).mkdir()
        for number in range(GROUPS * CLIPS):
            name = f"{label}/v_{label}_g{number // CLIPS + 1:02d}_c{number % CLIPS + 1:02d}.mp4"
            shutil.copy(video, folder / name)
            lines.append(f"{name},{label}")
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    small = ("--short-side", 32, "--flow", "none")
    command(main, "run", "--manifest", folder / "list.csv", "--source", folder, "--output", output, *small)
    return output


def keys(samples):
    return [sample.key for sample in samples]


def video_of(sample):
    return read_json(sample.read(("json",)))["source"]["video"]


@pytest.mark.parametrize(("share", "groups"), [(0.2, 1), (0.4, 2), (0.5, 2)])
def test_whole_groups_are_held_out_and_the_share_of_each_class(dataset, share, groups):
    samples = open_samples(str(dataset))
    rest, held_out = hold_out(samples, share)
    assert sorted(keys(rest) + keys(held_out)) == keys(samples)
    assert not set(keys(rest)) & set(keys(held_out))
    clips_of_group = Counter(video_of(sample).rpartition("_")[0] for sample in held_out)
    assert set(clips_of_group.values()) == {CLIPS}
    groups_of_class = Counter(group.partition("/")[0] for group in clips_of_group)
    assert groups_of_class.keys() == set(LABELS)
    assert all(groups <= count <= groups + (share == 0.5) for count in groups_of_class.values())  # 5 halve either way


def test_the_choice_depends_on_no_order(dataset):
    samples = open_samples(str(dataset))
    shuffled = samples.take(np.random.default_rng(0).permutation(len(samples)))
    assert sorted(keys(hold_out(shuffled, 0.4)[1])) == keys(hold_out(samples, 0.4)[1])


def test_a_share_that_is_at_most_half_a_video_is_refused(dataset):
    for share in (0.05, 0.1):  # of ten clips of a class, in groups of two
        with pytest.raises(FormatError, match=r"at most half a video of any class: give a larger share \(--hold-out"):
            hold_out(open_samples(str(dataset)), share)
    with pytest.raises(ValueError, match="at most"):
        hold_out(open_samples(str(dataset)), 0.6)


@pytest.mark.parametrize(
    ("key", "video", "source"),
    [
        ("-WyYM6K1z1l_000001_000011", "-WyYM6K1z1l", "-WyYM6K1z1l"),
        ("-WyYM6K1z1l_000101_000111", "", "-WyYM6K1z1l"),
        ("x", "Biking/v_Biking_g08_c01.avi", "Biking/v_Biking_g08"),
        ("x", "brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0.avi", "April_09"),
        ("x", "sword/A_Film_sword_f_cm_np2_fr_med_13.avi", "A_Film"),
        ("x", "draw_sword/A_Film_draw_sword_h_nm_np1_ri_bad_2.avi", "A_Film"),
        ("x", "run/My_run_2.mp4", "run/My_run_2.mp4"),
    ],
)
def test_source_videos_by_name(key, video, source):
    assert source_video(key, {"source": {"video": video}}) == source
    assert source_video("x", {}) == source_video("x", {"source": None}) == "x"


@pytest.mark.slow
def test_i3d_eval_tests_what_i3d_train_left_out(dataset, tmp_path):
    small = ("--stream", "rgb", "--batch-size", 4, "--frames", 9, "--crop", 32, "--workers", 0, "--lr", 0.001)
    run, found = tmp_path / "run", tmp_path / "found.json"
    command(train_command, "--shards", dataset, *small, "--steps", 1, "--hold-out", 0.4, "--output", run)
    configuration = json.loads((run / "config.json").read_text())["configuration"]
    assert configuration["hold_out"] == 0.4
    assert (configuration["data"]["samples"], configuration["validation"]["samples"]) == (12, 8)
    network = ("--rgb", run / "model.pt", "--crop", 32, "--json", found)
    assert "Warning" not in command(evaluate_command, "--shards", dataset, "--hold-out", 0.4, *network)
    tested = json.loads(found.read_text())
    assert [clip["key"] for clip in tested["clips"]] == keys(hold_out(open_samples(str(dataset)), 0.4)[1])
    assert tested["hold_out"] == 0.4
    assert tested["bootstrap"]["videos"] == len(tested["clips"]) / CLIPS
    said = command(evaluate_command, "--shards", dataset, "--hold-out", 0.5, *network[:2])
    assert "rgb was trained with --hold-out 0.4: if on this data, it may know some of the clips" in said
    assert tested["top1"] == read_metrics(run / "metrics.jsonl")[-1]["val_top1"]
    command(report_command, run, "-o", tmp_path / "page.html")
    assert "not shown" not in (tmp_path / "page.html").read_text()
    other = ("--hold-out", 0.2, "--resume", "auto")
    said = command(train_command, "--shards", dataset, *small, "--steps", 2, *other, "--output", run, status=1)
    assert "hold_out: 0.4 → 0.2" in said


def test_clips_to_test_on_come_from_one_place(tmp_path):
    data = ("--shards", golden.DATASET, "--split", "train", "--val-shards", golden.DATASET, "--val-split", "val")
    how = ("--stream", "rgb", "--steps", 1, "--crop", 32, "--output", tmp_path / "run")
    said = command(train_command, *data, *how, "--hold-out", 0.2, status=1)
    assert "--hold-out 0.2: clips to test on come from --val-shards already" in said
