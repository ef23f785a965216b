"""i3d-transfer on the golden clips, and the classifier of frozen features that is its Fixed setting."""

import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from manifests.sample import FormatError
from model import Checkpoint, build, load_checkpoint, save_run
from pipeline.cli import main
from tests import golden
from tests.demo.render import CLASSES
from tests.test_ranks import damaged_copy
from train.eval_command import evaluate_command
from train.evaluate import network_logits
from train.frozen import clip_features, features_of, with_softmax
from train.hold_out import hold_out
from train.loader import Bad, whole_clips
from train.log import read_metrics
from train.run import RunError
from train.schedule import Schedule
from train.softmax import Labelled, Softmax, Training, train_softmax
from train.stream import open_samples
from train.transfer import Candidate, best_of
from train.transfer_command import transfer_command

DATA = ("--shards", golden.DATASET, "--train-split", "train", "--test-split", "val")
SMALL = ("--batch-size", 4, "--crop", 32, "--workers", 0)
CPU = torch.device("cpu")


def command(which, *arguments, status=0):
    result = CliRunner().invoke(which, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output + repr(result.exception)
    return result.output


def result_of(cell):
    return json.loads((cell / "result.json").read_text())


def configuration_of(run):
    return json.loads((run / "config.json").read_text())["configuration"]


def checkpoint_of(architecture, streams, classes=7):
    torch.manual_seed(0)
    network = build(architecture, streams, classes).eval()
    return Checkpoint(network.state_dict(), architecture, streams, classes, "run", {"a": f"{architecture} {streams}"})


@pytest.fixture(scope="module")
def trained_elsewhere(tmp_path_factory):
    """A two-stream network of other classes."""
    path = tmp_path_factory.mktemp("init") / "network.pt"
    save_run(path, checkpoint_of("two-stream", ("rgb", "flow")).network(), [f"other {n}" for n in range(7)])
    return path


@pytest.mark.parametrize(
    ("architecture", "streams"),
    [
        ("i3d", ("rgb",)),
        ("lstm", ("flow",)),
        ("two-stream", ("rgb", "flow")),
        pytest.param("two-stream", ("flow",), marks=pytest.mark.slow),
        pytest.param("fused", ("rgb", "flow"), marks=pytest.mark.slow),
    ],
)
def test_the_last_layer_of_features_is_the_network(architecture, streams):
    """So that what was trained on features is what i3d-eval tests."""
    checkpoint = checkpoint_of(architecture, streams)
    pixels = next(whole_clips(open_samples(str(golden.DATASET), "val"), streams, 32)).pixels
    features = clip_features(pixels, checkpoint.network(), CPU)
    softmax = Softmax(torch.randn(3, len(features)) / features.norm(), torch.randn(3))
    network = with_softmax(checkpoint, softmax).network()
    torch.testing.assert_close(
        network_logits(pixels, network, CPU), softmax.logits(features[None])[0], rtol=1e-4, atol=1e-4
    )


def training(**changes):
    values = {"steps": 60, "batch_size": 8, "patience": 2, "evaluate_every": None, "weight_decay": 0.0, "seed": 0}
    rate = changes.pop("rate", 0.1)
    return Training(**{**values, **changes}, schedule=Schedule("plateau", rate))


def test_a_softmax_learns_features_of_different_scales():
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(60) % 3
    features = torch.randn(60, 5, generator=generator)
    features[:, 0] += 4.0 * classes
    features[:, 1] -= 4.0 * (classes == 1)
    scaled = features * torch.tensor([0.5, 10.0, 1.0, 1.0, 0.0]) + torch.tensor([5.0, -40.0, 0.0, 0.0, 3.0])
    clips = Labelled(scaled, classes)
    softmax = train_softmax(clips, 3, training(), None)
    assert softmax.judged(clips)[0] == 1
    assert torch.equal(softmax.weight, train_softmax(clips, 3, training(), None).weight)
    assert not torch.equal(softmax.weight, train_softmax(clips, 3, training(seed=1), None).weight)
    assert train_softmax(clips, 3, training(rate=1e38), None) is None
    far = Labelled(torch.full((1, 5), 3e38), torch.tensor([0]))
    assert train_softmax(clips, 3, training(evaluate_every=1000), far) is None


def test_a_loss_that_is_no_number_is_never_the_best():
    candidates = [Candidate(1.0, 0.9, math.nan), Candidate(0.1, 0.5, 2.0), Candidate(0.01, None, None)]
    assert best_of(candidates).rate == 0.1
    with pytest.raises(RunError, match=r"diverged with each of the learning rates 1, 0\.01"):
        best_of([candidates[0], candidates[2]])


def test_features_are_computed_once(tmp_path, monkeypatch):
    samples = open_samples(str(golden.DATASET), "val")
    checkpoint = checkpoint_of("two-stream", ("rgb",))
    monkeypatch.setattr("train.frozen.PIECE_CLIPS", 3)
    first = np.stack(list(features_of(samples, checkpoint, 32, tmp_path, CPU)))
    assert first.shape == (4, 1024)
    files = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert len(files) == 2
    again = np.stack(list(features_of(samples, checkpoint, 32, tmp_path, CPU)))
    assert np.array_equal(first, again)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == files
    list(features_of(samples, checkpoint, 40, tmp_path, CPU))
    list(features_of(samples, checkpoint_of("two-stream", ("flow",)), 32, tmp_path, CPU))
    assert len(list(tmp_path.iterdir())) == 6  # none of another crop, or of another network
    file = min(files, key=lambda file: file.stat().st_size)
    rows = np.load(file)
    damaged = {
        "expected 8 bytes got 6": lambda content: content.write(b"\x93NUMPY"),
        "EOF|unterminated|was never closed|Cannot parse": lambda content: content.write(
            b"\x93NUMPY\x01\x00\x10\x00" + b"{'descr': '<f4',"
        ),
        "magic string": lambda content: np.savez(content, rows=rows),
        r"float32 \(1, 1023\), want float32 \(1, 1024\)": lambda content: np.save(content, rows[:, 1:]),
        "not finite": lambda content: np.save(content, np.full_like(rows, np.nan)),
    }
    for said, write in damaged.items():
        with file.open("wb") as content:
            write(content)
        with pytest.raises(FormatError, match=f"damaged, remove it: .*{said}"):
            list(features_of(samples, checkpoint, 32, tmp_path, CPU))


def test_clips_without_features_are_named_until_they_are_whole(tmp_path, monkeypatch):
    keys = damaged_copy(tmp_path / "data", (0, 2), "val")
    samples = open_samples(str(tmp_path / "data"), "val")
    checkpoint = checkpoint_of("two-stream", ("flow",))
    monkeypatch.setattr("train.frozen.PIECE_CLIPS", 3)

    def found(samples, folder):
        return list(features_of(samples, checkpoint, 32, tmp_path / folder, CPU))

    whole = found(open_samples(str(golden.DATASET), "val"), "whole")
    for _ in range(2):
        rows = found(samples, "features")
        assert [row.key for row in rows if isinstance(row, Bad)] == keys
        assert all("other bytes than the index says" in row.message for row in rows if isinstance(row, Bad))
        assert all(isinstance(row, Bad) or np.array_equal(row, other) for row, other in zip(rows, whole, strict=True))
    shutil.copytree(golden.DATASET, tmp_path / "data", dirs_exist_ok=True)
    assert np.array_equal(found(samples, "features"), whole)


def test_fixed_leaves_out_what_it_cannot_read(trained_elsewhere, tmp_path):
    keys = damaged_copy(tmp_path / "data", (1, 3), "train")
    data = ("--shards", tmp_path / "data", "--train-split", "train", "--test-split", "val")
    how = (*data, *SMALL, "--model", "two-stream", "--stream", "both", "--setting", "fixed", "--steps", 5)
    fixed = (*how, "--init", trained_elsewhere, "--output", tmp_path / "cell", "--hold-out", 0.5)
    said = command(transfer_command, *fixed, "--max-bad", 1, status=1)
    assert "2 clips cannot be used, more than --max-bad 1: " in said
    said = command(transfer_command, *fixed, "--max-bad", 2)
    assert len(re.findall("^left out: .*other bytes than the index says", said, re.MULTILINE)) == 2
    found = result_of(tmp_path / "cell")
    assert [clip["key"] for clip in found["left_out"]] == keys
    assert found["clips_labelled"] == 4
    assert len(found["chosen"]["candidates"]) == 7
    damaged_copy(tmp_path / "worse", range(len(open_samples(str(golden.DATASET), "train"))), "train")
    fixed = ("--shards", tmp_path / "worse", *fixed[2:], "--features", tmp_path / "features")
    assert "none of the 8 clips can be used" in command(
        transfer_command, *fixed, "--output", tmp_path / "none", status=1
    )


def test_features_that_are_not_finite_are_not_kept(tmp_path):
    checkpoint = checkpoint_of("two-stream", ("rgb",))
    weights = {name: tensor * (1e38 if "conv" in name else 1) for name, tensor in checkpoint.state_dict.items()}
    with pytest.raises(FormatError, match="the network's features of this clip are not finite"):
        list(features_of(open_samples(str(golden.DATASET), "val"), replace(checkpoint, state_dict=weights), 32,
                         tmp_path, CPU))  # fmt: skip
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_fixed_features_and_a_softmax(trained_elsewhere, tmp_path):
    cell = tmp_path / "cell"
    how = (*DATA, *SMALL, "--model", "two-stream", "--stream", "both", "--setting", "fixed", "--steps", 50)
    fixed = (*how, "--init", trained_elsewhere, "--hold-out", 0.5, "--features", tmp_path / "features")
    said = command(transfer_command, *fixed, "--rates", "1e38,1e37", "--output", cell, status=1)
    assert "diverged with each of the learning rates 1e+38, 1e+37" in said
    said = command(transfer_command, *fixed, "--rates", "0.1,0.01", "--output", cell)  # nothing had come of the other
    assert re.search(r"^rate 0\.1  validation top-1 [01]\.\d{4}  loss \d", said, re.MULTILINE)
    found = result_of(cell)
    assert (found["setting"], found["model"], found["stream"]) == ("fixed", "two-stream", "both")
    assert found["initial"] == {"network.pt": sha256(trained_elsewhere.read_bytes()).hexdigest()}
    assert found["clips_labelled"] == 4
    candidates = {candidate["rate"]: candidate for candidate in found["chosen"]["candidates"]}
    assert candidates.keys() == {0.1, 0.01}
    best = min(candidates, key=lambda rate: candidates[rate]["val_loss"])
    assert found["chosen"]["rate"] == best

    tested, begun = load_checkpoint(cell / "network.pt"), load_checkpoint(trained_elsewhere)
    assert tested.classes == tuple(CLASSES[:4])
    changed = [n for n in begun.state_dict if not torch.equal(begun.state_dict[n], tested.state_dict[n])]
    assert changed == ["rgb.head.weight", "rgb.head.bias", "flow.head.weight", "flow.head.bias"]

    before = (cell / "result.json").read_bytes()
    command(transfer_command, *fixed, "--rates", "0.1,0.01", "--output", cell)
    assert (cell / "result.json").read_bytes() == before
    said = command(transfer_command, *fixed, "--rates", "0.1", "--output", cell, status=1)
    assert "holds another cell: hold_out: 0.5 → None, rates" in said
    said = command(transfer_command, *fixed, "--rates", "0.1,0.01", "--crops", 3, "--output", cell, status=1)
    assert "holds another cell: options.crops: None → 3" in said


@pytest.mark.slow
@pytest.mark.parametrize(("model", "streams"), [("i3d", ("rgb",)), ("lstm", ("flow",)), ("fused", ("rgb", "flow"))])
def test_fixed_knows_the_clips_that_it_was_trained_on(model, streams, tmp_path):
    """One rate is taken as it is, another cell needs no features anew, and i3d-eval tests as it is told to."""
    save_run(tmp_path / "init.pt", checkpoint_of(model, streams).network(), None)
    stream = "both" if len(streams) > 1 else streams[0]
    how = (*DATA, *SMALL, "--model", model, "--crops", 3, "--flips", "--precision", "bf16")
    fixed = (*how, "--stream", stream, "--setting", "fixed", "--init", tmp_path / "init.pt", "--steps", 200)
    folder = tmp_path / "features"
    inodes = []
    for rate in (0.03, 0.01):
        cell = ("--features", folder, "--rates", rate, "--output", tmp_path / str(rate))
        said = command(transfer_command, *fixed, "--max-bad", 7, *cell)
        found = result_of(tmp_path / str(rate))
        assert found["chosen"] == {"rate": rate, "hold_out": None, "candidates": []}
        protocol = found["protocol"]
        assert (protocol["crops"], protocol["flips"], protocol["precision"]) == (3, True, "bf16")
        assert "--max-bad 7 " in said
        network, again = tmp_path / str(rate) / "network.pt", tmp_path / "again.json"
        data = ("--shards", golden.DATASET, "--split", "train", "--crop", 32, f"--{stream}", network)
        command(evaluate_command, *data, "--json", again)
        assert json.loads(again.read_text())["top1"] == 1
        found = load_checkpoint(network)
        assert (found.crop, found.short_side) == (32, 48)
        inodes.append({file.stat().st_ino for file in folder.iterdir()})
    assert inodes[0] == inodes[1]


@pytest.mark.slow
def test_original_chooses_on_held_out_clips_and_trains_on_all(tmp_path):
    cell = tmp_path / "cell"
    how = (*DATA, *SMALL, "--frames", 9, "--stream", "flow", "--setting", "original", "--steps", 4, "--no-flip")
    several = (*how, "--rates", "0.01,0.0001", "--hold-out", 0.5, "--launcher", "nice -n 1", "--output", cell)
    command(transfer_command, *several)
    found = result_of(cell)
    for rate in (0.01, 0.0001):
        configuration = configuration_of(cell / f"rate-{rate}")
        assert (configuration["hold_out"], configuration["schedule"]["base_rate"]) == (0.5, rate)
        assert (configuration["data"]["samples"], configuration["flip"]) == (4, False)
    final = configuration_of(cell / "final")
    assert (final["data"]["samples"], final["validation"], final["initial"]) == (8, None, None)
    assert final["schedule"]["base_rate"] == found["chosen"]["rate"]
    assert (cell / "network.pt").read_bytes() == (cell / "final" / "model.pt").read_bytes()
    network = sha256((cell / "network.pt").read_bytes()).hexdigest()
    assert found["checkpoints"]["flow"]["sha256"] == {"network.pt": network}
    held_out = {sample.key for sample in hold_out(open_samples(str(golden.DATASET), "train"), 0.5)[1]}
    assert not held_out & {clip["key"] for clip in found["clips"]}

    written = {path: path.stat().st_mtime_ns for path in cell.glob("*/metrics.jsonl")}
    (cell / "result.json").unlink()
    command(transfer_command, *several)
    assert result_of(cell) == found
    assert {path: path.stat().st_mtime_ns for path in cell.glob("*/metrics.jsonl")} == written


@pytest.mark.slow
def test_full_ft_with_a_validation_split_and_a_rate_that_diverges(trained_elsewhere, tmp_path, make_video):
    cell = tmp_path / "cell"
    rows = [f"{label}-{split}.mp4,{label},{split}" for label in "xy" for split in ("train", "val", "test")]
    for number, row in enumerate(rows):
        make_video(tmp_path / row.partition(",")[0], "-vf", f"rotate={number}", size="64x48", seconds=0.6)
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    lists = ("--manifest", tmp_path / "list.csv", "--source", tmp_path, "--output", tmp_path / "data")
    command(main, "run", *lists, "--short-side", 32)
    data = ("--shards", tmp_path / "data", "--train-split", "train", "--test-split", "test", "--val-split", "val")
    how = (*data, *SMALL, "--model", "two-stream", "--stream", "both", "--setting", "full-ft")
    launcher = "torchrun --nproc-per-node 2 --no-python"
    command(transfer_command, *how, "--init", trained_elsewhere, "--rates", "1e30,0.001", "--steps", 3,
            "--launcher", launcher, "--output", cell)  # fmt: skip
    found = result_of(cell)
    diverged, good = found["chosen"]["candidates"]
    assert diverged == {"rate": 1e30, "val_top1": None, "val_loss": None}
    last = read_metrics(cell / "rate-0.001" / "metrics.jsonl")[-1]
    assert (good["val_top1"], good["val_loss"]) == (last["val_top1"], last["val_loss"])
    assert (found["chosen"]["rate"], found["chosen"]["hold_out"]) == (0.001, None)
    assert configuration_of(cell / "rate-0.001")["initial"] == found["initial"]
    assert not (cell / "final").exists()
    tested, begun = load_checkpoint(cell / "network.pt"), load_checkpoint(trained_elsewhere)
    name = "rgb.body.Conv2d_1a_7x7.conv.weight"
    assert not torch.equal(tested.state_dict[name], begun.state_dict[name])


@pytest.mark.slow
def test_a_cell_that_is_stopped_goes_on(tmp_path):
    cell = tmp_path / "cell"
    how = (*DATA, *SMALL, "--frames", 9, "--stream", "rgb", "--setting", "original", "--rates", 0.001)
    code = "from train.transfer_command import transfer_command as command; command()"
    words = [sys.executable, "-c", code, *map(str, (*how, "--steps", 10, "--checkpoint-every", 1, "--output", cell))]
    child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not list(cell.glob("final/checkpoints/*.pt")):
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=300)
    assert child.returncode == 1
    assert "stopped after step" in said
    assert "the same command goes on" in said
    assert not (cell / "network.pt").exists()
    done = subprocess.run(words, timeout=600, capture_output=True, text=True)
    assert done.returncode == 0
    assert "goes on from" in done.stderr
    assert result_of(cell)["clips_labelled"] == 4


def test_what_does_not_go_together(trained_elsewhere, tmp_path):
    def said(*options, status=1):
        return command(transfer_command, *DATA, *SMALL, "--output", tmp_path / "cell", *options, status=status)

    rgb = ("--stream", "rgb")
    assert "name it with --init" in said(*rgb, "--setting", "full-ft")
    assert "its architecture is two-stream" in said(
        "--stream", "both", "--model", "fused", "--setting", "fixed", "--init", trained_elsewhere
    )
    assert "different numbers above 0" in said(*rgb, "--setting", "original", "--rates", "0.1,-1", status=2)
    assert "no sample of split 'test9'" in said(*rgb, "--setting", "original", "--test-split", "test9")
    assert "--val-split val is --test-split, too" in said(*rgb, "--setting", "original", "--val-split", "val")
    assert "--val-split train is --train-split, too" in said(*rgb, "--setting", "original", "--val-split", "train")
    assert "--train-split val is --test-split, too" in said(*rgb, "--setting", "original", "--train-split", "val")
    assert "'--hold-out': nan is not finite" in said(*rgb, "--setting", "original", "--hold-out", "nan", status=2)
    typed = (
        "--dropout",
        0.5,
        "--frames",
        9,
        "--sync-bn",
        "--clip-gradient",
        1,
        "--accumulate",
        1,
        "--launcher",
        "nice",
    )
    refused = said(*rgb, "--setting", "fixed", "--init", trained_elsewhere, *typed)
    assert "which knows no --frames, --dropout, --clip-gradient, --sync-bn, --launcher\n" in refused
    (tmp_path / "cell").mkdir()
    (tmp_path / "cell" / "mine.txt").write_text("")
    assert "holds other files" in said(*rgb, "--setting", "original")
