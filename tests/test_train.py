"""i3d-train on the demo's clips, made here: prepared with flow, small."""

import json
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model import I3D, CheckpointError, OffsetBatchNorm, load_checkpoint, load_training, save_run
from pipeline.cli import main
from tests import golden
from tests.demo.render import CLASSES
from train.batch_norm import recompute_statistics
from train.cli import train_command
from train.eval_command import evaluate_command
from train.log import read_metrics
from train.stream import open_samples

SMALL = ("--batch-size", 2, "--frames", 9, "--crop", 32, "--lr", 0.001, "--workers", 0)


def command(which, *arguments, status=0):
    result = CliRunner().invoke(which, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output + repr(result.exception)
    return result.output


def losses(run):
    return [line["loss"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line]


@pytest.fixture(scope="module")
def demo():
    """Eight training clips and four held-out ones of four classes, with flow, at short side 48."""
    return golden.DATASET


@pytest.fixture
def train(demo, tmp_path):
    """Run the command on the training clips; later options win."""

    def run(*arguments, shards=demo, output=tmp_path / "run", stream="flow", split=("--split", "train"), status=0):
        fixed = ("--shards", shards, *split, "--stream", stream, "--output", output)
        return command(train_command, *fixed, *SMALL, *arguments, status=status)

    return run


@pytest.mark.slow
def test_a_run_learns_by_heart_and_leaves_all_that_is_needed(demo, train, tmp_path):
    validation = ("--val-shards", demo, "--val-split", "val")
    said = train(*validation, "--steps", 24, "--evaluate-every", 8, "--batch-size", 4, "--lr", 0.0003, "--no-flip")
    run = tmp_path / "run"
    lines = read_metrics(run / "metrics.jsonl")
    steps, evaluations = ([line for line in lines if ("loss" in line) == trained] for trained in (True, False))
    assert [line["step"] for line in steps] == list(range(1, 25))
    assert [line["step"] for line in evaluations] == [8, 16, 24]
    assert steps[1]["epoch"] == 1
    assert all(0 <= line["waiting_seconds"] <= line["seconds"] for line in steps)
    assert re.search(r"step 24: training loss \S+  validation loss", said)
    assert np.mean(losses(run)[12:]) < np.mean(losses(run)[:12])

    configuration = json.loads((run / "config.json").read_text())["configuration"]
    assert (configuration["data"]["samples"], configuration["validation"]["samples"]) == (8, 4)
    assert configuration["data"]["snapshot"] == "0001"
    board = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("train/loss")] == list(range(1, 25))
    assert [event.step for event in board.Scalars("evaluation/val_top1")] == [8, 16, 24]
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["000000016.pt", "000000024.pt"]
    assert load_checkpoint(run / "model.pt").classes == tuple(CLASSES[:4])

    command(
        evaluate_command, "--shards", demo, "--split", "val", "--flow", run / "model.pt", "--crop", 32,
        "--json", tmp_path / "found.json",
    )  # fmt: skip
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["top1"] == evaluations[-1]["val_top1"]
    best = min(evaluations, key=lambda line: line["val_loss"])["step"]
    same = load_checkpoint(run / "best.pt").sha256["best.pt"] == load_checkpoint(run / "model.pt").sha256["model.pt"]
    assert same == (best == 24)


@pytest.mark.slow
def test_losses_do_not_depend_on_the_number_of_workers(train, tmp_path):
    for workers in (0, 2):
        train("--steps", 5, "--workers", workers, output=tmp_path / str(workers))
    assert losses(tmp_path / "0") == losses(tmp_path / "2")
    assert len(set(losses(tmp_path / "0"))) == 5


@pytest.mark.slow
def test_another_seed_is_another_run(train, tmp_path):
    train("--steps", 2)
    train("--steps", 2, "--seed", 1, output=tmp_path / "other")
    assert losses(tmp_path / "run") != losses(tmp_path / "other")


def test_a_resumed_run_equals_one_that_never_stopped(train, tmp_path):
    """Past an evaluation, so that measuring statistics is seen to disturb nothing."""
    options = ("--evaluate-every", 3, "--patience", 1)
    train("--steps", 9, *options, output=tmp_path / "whole")
    for steps, workers in ((2, 0), (5, 1), (9, 0)):
        train("--steps", steps, *options, "--workers", workers, "--resume", "auto", output=tmp_path / "parts")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    whole, parts = (load_checkpoint(tmp_path / name / "model.pt").state_dict for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.slow
def test_an_evaluation_that_a_stop_cut_off_is_made_up(demo, train, tmp_path):
    """What the schedule learns from it counts, so a run killed within it must equal one that was not."""
    options = ("--evaluate-every", 3, "--patience", 1, "--val-shards", demo, "--val-split", "val")
    train("--steps", 7, *options, output=tmp_path / "whole")
    run = tmp_path / "parts"
    fixed = ("--shards", demo, "--split", "train", "--stream", "flow", "--output", run)
    words = map(str, (*fixed, *SMALL, "--steps", 7, *options))
    child = subprocess.Popen([Path(sys.executable).with_name("i3d-train"), *words], stderr=subprocess.DEVNULL)
    state = run / "checkpoints" / "000000003.pt"
    deadline = time.monotonic() + 120
    while not state.exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    child.kill()
    child.wait()
    assert load_training(state)[1]["tested"] == 0  # killed within the evaluation after step 3
    for steps in (3, 7):  # the first makes up for it, and trains no further
        train("--steps", steps, *options, "--resume", "auto", output=run)

    def metrics(name):
        times = ("seconds", "waiting_seconds")
        lines = read_metrics(tmp_path / name / "metrics.jsonl")
        return [{key: value for key, value in line.items() if key not in times} for line in lines]

    assert metrics("parts") == metrics("whole")
    states = (load_training(tmp_path / name / "checkpoints" / "000000007.pt") for name in ("whole", "parts"))
    (whole, whole_training), (parts, parts_training) = states
    assert all(torch.equal(whole.state_dict[name], parts.state_dict[name]) for name in whole.state_dict)
    assert whole_training["plateau"] == parts_training["plateau"]


@pytest.mark.slow
def test_lines_after_the_checkpoint_are_taken_back(train, tmp_path):
    """A killed run has logged steps that its newest checkpoint does not know."""
    train("--steps", 2)
    metrics = tmp_path / "run" / "metrics.jsonl"
    with metrics.open("a") as file:
        file.write('{"step": 3, "loss": 9.0}\n{"step": 4, "lo')
    train("--steps", 4, "--resume", "auto")
    assert [line["step"] for line in read_metrics(metrics) if "loss" in line] == [1, 2, 3, 4]
    assert 9.0 not in losses(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_and_ends_well(demo, tmp_path, number):
    program = Path(sys.executable).with_name("i3d-train")
    run = tmp_path / "run"
    arguments = (
        "--shards", demo, "--split", "train", "--stream", "flow", "--output", run, "--steps", 100_000, *SMALL,
        "--workers", 1, "--evaluate-every", 100_000,
    )  # fmt: skip
    child = subprocess.Popen([program, *map(str, arguments)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not ((run / "metrics.jsonl").exists() and len(read_metrics(run / "metrics.jsonl")) > 2):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    child.send_signal(number)
    said = child.communicate(timeout=60)[1]
    assert child.returncode == 0, said
    stopped = int(re.search(r"stopped after step (\d+)", said)[1])
    _, training = load_training(run / "checkpoints" / f"{stopped:09d}.pt")
    assert training["step"] == stopped == len(losses(run))


@pytest.mark.slow
def test_only_the_newest_checkpoints_are_kept(train, tmp_path):
    train("--steps", 5, "--checkpoint-every", 1)
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "000000004.pt",
        "000000005.pt",
    ]
    with pytest.raises(CheckpointError, match=r"use model\.pt"):
        load_checkpoint(tmp_path / "run" / "checkpoints" / "000000005.pt")


@pytest.mark.slow
def test_the_learning_rate_falls_when_the_loss_does_not(train, tmp_path):
    """At this rate it rises from the first evaluation on; after each second one without a new low the rate falls."""
    train("--steps", 6, "--evaluate-every", 1, "--patience", 2, "--lr", 0.3)
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    rates = [line["lr"] for line in lines if "loss" in line]
    assert rates == pytest.approx([0.3, 0.3, 0.3, 0.03, 0.03, 0.003])


def test_statistics_are_averages_over_the_batches():
    torch.manual_seed(0)
    network = I3D(3, 2).train()
    batches = [(2 * torch.rand(2, 2, 9, 32, 32) - 1) * scale for scale in (0.2, 0.5, 1.0)]
    weights = {name: p.clone() for name, p in network.named_parameters()}
    state = torch.get_rng_state()
    recompute_statistics(network, [(batch,) for batch in batches])
    assert torch.equal(torch.get_rng_state(), state)
    assert not network.training
    first, seen = network.Conv3d_1a_7x7, []
    hook = first.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].mean((0, 2, 3, 4))))
    for batch in batches:
        network(batch)
    hook.remove()
    assert torch.allclose(first.norm.running_mean, torch.stack(seen).mean(0), atol=1e-6)
    assert all(torch.equal(weights[name], p) for name, p in network.named_parameters())
    assert {m.momentum for m in network.modules() if isinstance(m, OffsetBatchNorm)} == {1e-3}


@pytest.mark.slow
def test_initial_weights_and_their_head(demo, train, tmp_path):
    for name, classes in (("same", CLASSES[:4]), ("other", ["a", "b", "c", "d"]), ("more", list("abcdefg"))):
        torch.manual_seed(5)
        save_run(tmp_path / f"{name}.pt", I3D(len(classes), 2), classes)
        given = load_checkpoint(tmp_path / f"{name}.pt").state_dict
        train("--steps", 1, "--lr", 1e-9, "--init", tmp_path / f"{name}.pt", output=tmp_path / name)
        trained = load_checkpoint(tmp_path / name / "model.pt").state_dict
        stem = "Conv3d_1a_7x7.conv.weight"
        assert torch.allclose(given[stem], trained[stem], atol=1e-6)
        kept = given["Logits.weight"].shape == trained["Logits.weight"].shape and torch.allclose(
            given["Logits.weight"], trained["Logits.weight"], atol=1e-6
        )
        assert kept == (name == "same")


@pytest.mark.slow
def test_tars_are_trained_on_where_each_class_has_a_sample(demo, train, tmp_path):
    tar = next((demo / "shards" / "train").glob("*.tar"))
    train("--steps", 2)
    train("--steps", 2, "--shards", f"{tar.parent}/*.tar", output=tmp_path / "tars")
    assert losses(tmp_path / "tars") == losses(tmp_path / "run")
    found = [load_checkpoint(tmp_path / run / "model.pt") for run in ("run", "tars")]
    assert [(one.crop, one.short_side) for one in found] == [(32, 48), (32, None)]
    classes = open_samples(str(demo), "train").classes
    assert open_samples(str(tar), "train").classes == classes

    samples = open_samples(str(demo), "train")
    kept = [sample.key for sample in samples if sample.record["class_index"] != 1]
    with tarfile.open(tar) as whole, tarfile.open(tmp_path / "some.tar", "w") as some:
        for member in whole:
            if member.name.split(".")[0] in kept:
                some.addfile(member, whole.extractfile(member))
    said = train("--steps", 1, "--shards", tmp_path / "some.tar", output=tmp_path / "c", status=1)
    assert "no tar has a sample of some class, whose name is unknown so: name the dataset's folder" in said


def test_bad_words(demo, train, tmp_path):
    assert "give either --steps or --epochs" in train(status=1)
    assert "give either --steps or --epochs" in train("--steps", 1, "--epochs", 1, status=1)
    assert "no sample of split 'test'; there are train, val" in train("--steps", 1, "--split", "test", status=1)
    assert "several splits (train, val): choose one" in train("--steps", 1, split=(), status=1)
    assert "no dataset is published there" in train("--steps", 1, "--shards", tmp_path, status=1)
    tars = ("--shards", f"{demo}/shards/train/*.tar")  # whose short side nobody knows before
    for where in ((), (*tars, "--val-shards", demo, "--val-split", "val")):
        said = train("--steps", 9, "--crop", 64, *where, output=tmp_path / "large", status=1)
        assert f"{demo}: stored short side 48 is smaller than --crop 64: give --crop 48" in said
    c3d = ("--shards", demo, "--split", "train", "--stream", "rgb", "--model", "c3d", "--crop", 112, "--steps", 9)
    said = command(train_command, *c3d, "--output", tmp_path / "large", status=1)
    assert "smaller than --crop 112: --model c3d sees 112 pixels at least" in said
    assert not (tmp_path / "large").exists()
    said = train("--steps", 9, "--crop", 64, *tars, "--max-bad", 3, output=tmp_path / "e", status=1)
    assert re.search(
        r"\d samples are bad, more than --max-bad 3; .*pictures of 48x48 are smaller than the crop of 64x64", said
    )
    said = train("--steps", 9, "--crop", 64, *tars, output=tmp_path / "f", status=1)
    assert re.search(r"none of the 8 clips can be used; .*pictures of 48x48 are smaller", said)
    assert "--epochs 1e+30 are" in train("--epochs", 1e30, output=tmp_path / "b", status=1)
    assert "33 is odd, and colour is stored for 2x2 pixels" in train(
        "--steps", 1, "--crop", 33, output=tmp_path / "odd", status=2
    )
    assert "wants --val-shards" in train("--steps", 1, "--val-split", "val", output=tmp_path / "b", status=1)
    save_run(tmp_path / "rgb.pt", I3D(4, 3), None)
    said = train("--steps", 1, "--init", tmp_path / "rgb.pt", output=tmp_path / "d", status=1)
    assert "holds a network of rgb, one of flow was asked for" in said


@pytest.mark.slow
def test_shards_without_flow_or_labels(demo, train, tmp_path, make_video):
    (tmp_path / "videos").mkdir()
    make_video(tmp_path / "videos" / "aaaaaaaaaaa.mp4", size="64x64")
    labelled = "label,youtube_id,time_start,time_end,split\njump,aaaaaaaaaaa,0,1,train\n"
    unlabelled = "youtube_id,time_start,time_end,split\naaaaaaaaaaa,0,1,test\n"
    for name, row, side in (("labelled", labelled, 48), ("test", unlabelled, 48), ("larger", labelled, 64)):
        listed = tmp_path / f"{name}.csv"
        listed.write_text(row)
        (tmp_path / "classes.txt").write_text("jump\n")
        command(main, "run", "--manifest", listed, "--source", tmp_path / "videos", "--output", tmp_path / name,
                "--flow", "none", "--short-side", side, "--classes", tmp_path / "classes.txt")  # fmt: skip
    said = train("--steps", 1, shards=tmp_path / "labelled", split=(), status=1)
    assert re.search(r"\.tar: sample aaaaaaaaaaa_000000_000001 has no flow: prepared with --flow none\?", said)
    said = train("--steps", 1, shards=tmp_path / "test", split=(), stream="rgb", status=1)
    assert "none of the 1 samples has a label" in said
    said = train("--steps", 1, "--val-shards", tmp_path / "labelled", stream="rgb", status=1)
    assert "its classes are not those of the training data" in said
    other = ("--val-shards", tmp_path / "larger")
    said = train("--steps", 1, *other, shards=tmp_path / "labelled", split=(), stream="rgb", status=1)
    assert "larger: its pictures have a short side of 64 pixels, the training data's of 48" in said


@pytest.mark.slow
def test_frames_longer_than_any_clip_loop(train, tmp_path):
    train("--steps", 1, "--frames", 40)
    assert len(losses(tmp_path / "run")) == 1


def test_a_folder_of_something_else_is_left_alone(train, tmp_path):
    train("--steps", 1)
    run = tmp_path / "run"
    assert "holds a run already; go on with it (--resume auto)" in train("--steps", 2, status=1)
    said = train("--steps", 2, "--lr", 0.5, "--frames", 10, "--resume", "auto", status=1)
    assert "another configuration: frames: 9 → 10, schedule.base_rate: 0.001 → 0.5" in said
    assert losses(run) == losses(run)[:1]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    assert "holds other files" in train("--steps", 1, output=tmp_path / "other", status=1)
    (tmp_path / "file").touch()
    assert "Not a directory" in train("--steps", 1, output=tmp_path / "file" / "run", status=1)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text('{"layers": 3}')
    assert "not the configuration of a run" in train("--steps", 1, output=tmp_path / "foreign", status=1)
    assert (tmp_path / "foreign" / "config.json").read_text() == '{"layers": 3}'
    (run / "config.json").write_text("{}")
    assert "not the configuration of a run" in train("--steps", 2, "--resume", "auto", status=1)


def test_a_loss_that_is_no_number_stops_the_run_and_leaves_its_checkpoints_whole(train, tmp_path):
    said = train("--steps", 50, "--lr", 1e30, "--checkpoint-every", 1, status=1)
    found = re.search(r"the (loss|gradient) of step (\d+) is not finite; samples: (\S+), (\S+);", said)
    assert found, said
    step = int(found[2])
    state, training = load_training(max((tmp_path / "run" / "checkpoints").iterdir()))
    assert training["step"] == step - 1 == len(losses(tmp_path / "run"))
    assert all(tensor.isfinite().all() for tensor in state.state_dict.values())


@pytest.mark.slow
def test_damaged_samples_or_checkpoints_are_named(demo, train, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(demo, copy)
    train("--steps", 1, shards=copy)
    (shard,) = (copy / "shards" / "train").glob("*.tar")
    content = bytearray(shard.read_bytes())
    sample = open_samples(str(copy), "train")[3]
    content[int(sample.record["flow_offset"]) + 100] ^= 255
    shard.write_bytes(content)
    for workers in (0, 1):
        options = ("--steps", 4, "--workers", workers, "--max-bad", 0)
        said = train(*options, shards=copy, output=tmp_path / f"w{workers}", status=1)
        assert f"{shard.name}: {sample.key}.flow.mp4 holds other bytes than the index says" in said
        assert "Traceback" not in said
    checkpoint = tmp_path / "run" / "checkpoints" / "000000001.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    said = train("--steps", 2, "--resume", "auto", shards=copy, status=1)
    assert "000000001.pt: not a file of plain tensors" in said


def test_a_run_without_a_checkpoint_is_begun_anew(train, tmp_path):
    train("--steps", 1, "--crop", 64, "--max-bad", 0, status=1)
    train("--steps", 1, "--crop", 32)
    assert len(losses(tmp_path / "run")) == 1


@pytest.mark.slow
def test_fewer_steps_than_are_done_change_nothing(train, tmp_path):
    train("--steps", 2)
    before = (tmp_path / "run" / "model.pt").read_bytes()
    assert "nothing to do: 2 steps are done, 1 were asked for" in train("--steps", 1, "--resume", "auto")
    assert (tmp_path / "run" / "model.pt").read_bytes() == before
    assert len(losses(tmp_path / "run")) == 2


@pytest.mark.slow
def test_checkpointed_activations_change_nothing(train, tmp_path):
    train("--steps", 3)
    train("--steps", 3, "--checkpoint-activations", output=tmp_path / "again")
    assert losses(tmp_path / "again") == losses(tmp_path / "run")


@pytest.mark.slow
def test_a_killed_run_goes_on_at_once_and_a_second_start_is_refused(demo, train, tmp_path):
    program = Path(sys.executable).with_name("i3d-train")
    run = tmp_path / "run"
    arguments = ("--shards", demo, "--split", "train", "--stream", "flow", "--output", run, "--steps", 100_000, *SMALL)
    options = ("--workers", 1, "--checkpoint-every", 1, "--evaluate-every", 100_000)
    child = subprocess.Popen([program, *map(str, (*arguments, *options))], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(run.glob("checkpoints/*.pt")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    said = train("--steps", 5, "--evaluate-every", 100_000, "--resume", "auto", status=1)
    assert f"another run (process {child.pid}) is working on" in said
    child.kill()
    child.wait()
    time.sleep(1)  # for its worker to die, too
    done = int(max(run.glob("checkpoints/*.pt")).stem)
    train("--steps", done + 2, "--evaluate-every", 100_000, "--resume", "auto")
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line] == list(range(1, done + 3))


@pytest.mark.slow
@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_golden_loss_curve(tmp_path, stream):
    wanted = json.loads(golden.LOSSES.read_text())[stream]
    assert golden.losses(stream, tmp_path / "run") == pytest.approx(wanted, rel=golden.TOLERANCE)


@pytest.mark.slow
def test_states_of_other_names_are_left_alone(train, tmp_path):
    train("--steps", 2)
    folder = tmp_path / "run" / "checkpoints"
    shutil.copy(folder / "000000002.pt", folder / "keep.pt")
    train("--steps", 5, "--checkpoint-every", 1, "--resume", "auto")
    assert sorted(path.name for path in folder.iterdir()) == ["000000004.pt", "000000005.pt", "keep.pt"]
    shutil.move(folder / "keep.pt", folder / "000000007.pt")
    said = train("--steps", 9, "--resume", "auto", status=1)
    assert "000000007.pt: not the state of this training" in said
    assert "the state after 2 steps" in said


@pytest.mark.slow
def test_a_damaged_log_is_named_and_kept(train, tmp_path):
    train("--steps", 2)
    metrics = tmp_path / "run" / "metrics.jsonl"
    damaged = metrics.read_bytes().replace(b'{"step": 2', b'{"stop": 2', 1)
    metrics.write_bytes(damaged)
    said = train("--steps", 3, "--resume", "auto", status=1)
    assert "metrics.jsonl: line 2 is no metrics of a step" in said
    assert metrics.read_bytes() == damaged


def test_weights_that_are_no_numbers_are_never_written(train, tmp_path):
    """The step itself is finite, and so is its loss; what it makes of the weights is not."""
    said = train("--steps", 1, "--lr", 3e38, output=tmp_path / "huge", status=1)
    assert "weights or statistics are not finite after step 1" in said
    assert not list((tmp_path / "huge").glob("**/*.pt"))
    assert "'--lr': inf is not finite" in train("--steps", 1, "--lr", "inf", status=2)
    assert "'--epochs': nan is not finite" in train("--epochs", "nan", status=2)
    assert "'--hold-out': nan is not finite" in train("--steps", 1, "--hold-out", "nan", status=2)


@pytest.mark.slow
def test_initial_weights_keep_their_padding(train, tmp_path):
    save_run(tmp_path / "init.pt", I3D(4, 2, temporal_padding="replicate"), CLASSES[:4])
    train("--steps", 1, "--init", tmp_path / "init.pt")
    assert load_checkpoint(tmp_path / "run" / "model.pt").temporal_padding == "replicate"
