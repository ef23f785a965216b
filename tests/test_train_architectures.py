"""i3d-train and i3d-eval with each architecture, on the golden clips: 25 and 24 pictures, short side 48."""

import json

import pytest
import torch
from click.testing import CliRunner

from model import load_checkpoint
from pipeline.cli import main
from tests import golden
from tests.test_ranks import damaged_copy
from train.cli import report_command, train_command
from train.eval_command import evaluate_command
from train.log import read_metrics
from train.predict_command import predict_command

DATA = ("--shards", golden.DATASET, "--split", "train")
HELD_OUT = ("--val-shards", golden.DATASET, "--val-split", "val")
SMALL = ("--batch-size", 4, "--crop", 32, "--lr", 0.001, "--workers", 0, "--steps", 2)


def command(which, *arguments, status=0):
    result = CliRunner().invoke(which, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output + repr(result.exception)
    return result.output


@pytest.mark.parametrize(
    ("model", "stream"),
    [
        pytest.param("lstm", "rgb", marks=pytest.mark.slow),
        pytest.param("lstm", "flow", marks=pytest.mark.slow),
        pytest.param("two-stream", "rgb", marks=pytest.mark.slow),
        pytest.param("two-stream", "both", marks=pytest.mark.slow),
        pytest.param("fused", "flow", marks=pytest.mark.slow),
        pytest.param("fused", "both", marks=pytest.mark.slow),
    ],
)
def test_an_architecture_is_trained_validated_resumed_tested_and_asked(model, stream, tmp_path):
    run = tmp_path / "run"
    how = (*DATA, *HELD_OUT, *SMALL, "--model", model, "--stream", stream, "--output", run)
    command(train_command, *how, "--steps", 1)
    command(train_command, *how, "--resume", "auto")
    command(train_command, *how, "--output", tmp_path / "whole")
    lines, whole = (read_metrics(folder / "metrics.jsonl") for folder in (run, tmp_path / "whole"))
    assert [line["loss"] for line in lines if "loss" in line] == [line["loss"] for line in whole if "loss" in line]
    configuration = json.loads((run / "config.json").read_text())["configuration"]
    assert (configuration["model"], configuration["stream"]) == (model, stream)
    checkpoint = load_checkpoint(run / "model.pt")
    assert checkpoint.architecture == model
    assert checkpoint.streams == (("rgb", "flow") if stream == "both" else (stream,))

    found = tmp_path / "found.json"
    data = ("--shards", golden.DATASET, "--split", "val")
    command(evaluate_command, *data, f"--{stream}", run / "model.pt", "--crop", 32, "--json", found)
    tested = json.loads(found.read_text())
    assert tested["top1"] == lines[-1]["val_top1"]
    assert list(tested["streams"]) == [stream]
    command(report_command, run, "-o", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("<figcaption><b>moving") == 4
    assert "not shown" not in page


@pytest.mark.slow
def test_architectures_are_tested_together(tmp_path):
    """Each by its own windows; logits are added."""
    for model, stream in (("lstm", "rgb"), ("i3d", "flow"), ("fused", "both")):
        frames = ("--frames", 9) if model == "i3d" else ()
        how = (*SMALL, *frames, "--steps", 1, "--model", model, "--stream", stream, "--output", tmp_path / stream)
        command(train_command, *DATA, *how)
    checkpoints = [word for s in ("rgb", "flow", "both") for word in (f"--{s}", tmp_path / s / "model.pt")]
    data = ("--shards", golden.DATASET, "--split", "val", "--crop", 32)
    said = command(evaluate_command, *data, *checkpoints, "--json", tmp_path / "found.json")
    assert "together" in said
    assert set(json.loads((tmp_path / "found.json").read_text())["streams"]) == {"rgb", "flow", "both"}


def test_what_does_not_go_together(tmp_path):
    def said(*options):
        return command(train_command, *DATA, *SMALL, "--output", tmp_path / "run", *options, status=1)

    assert "--model i3d sees one stream" in said("--stream", "both")
    assert "--model lstm sees one stream" in said("--stream", "both", "--model", "lstm")
    assert "--frames 9: the windows of --model fused" in said("--stream", "both", "--model", "fused", "--frames", 9)
    assert "--model c3d sees 112 pixels a side" in said("--stream", "rgb", "--model", "c3d")
    recipe = said("--stream", "rgb", "--model", "lstm", "--recipe", "released-rgb")
    assert "--recipe released-rgb is not for --model lstm --stream rgb" in recipe
    command(train_command, *DATA, *SMALL, "--model", "lstm", "--stream", "rgb", "--output", tmp_path / "lstm")
    begun = said("--stream", "rgb", "--model", "two-stream", "--init", tmp_path / "lstm" / "model.pt")
    assert "its architecture is lstm, --model two-stream was asked for" in begun


@pytest.mark.skipif(torch.cuda.is_available(), reason="about training on a CPU")
def test_bf16_is_refused_on_cpus(tmp_path):
    how = (*DATA, *SMALL, "--stream", "rgb", "--output", tmp_path / "run", "--precision", "bf16")
    assert "--precision bf16 is for training on GPUs" in command(train_command, *how, status=1)
    assert not (tmp_path / "run" / "model.pt").exists()


@pytest.mark.slow
def test_one_clip_that_is_left_of_a_pass_ends_no_run(tmp_path):
    """Of a single clip an LSTM's normalisation has no variance."""
    damaged_copy(tmp_path / "data", (1,))
    how = (*SMALL, "--model", "lstm", "--stream", "flow", "--batch-size", 2, "--steps", 4, "--evaluate-every", 4)
    command(train_command, "--shards", tmp_path / "data", "--split", "train", *how, "--output", tmp_path / "run")
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-2]["bad"] == 1
    said = command(train_command, *DATA, *how, "--batch-size", 1, "--output", tmp_path / "one", status=1)
    assert "wants at least 2" in said


@pytest.mark.slow
def test_the_3d_convnet_sees_112_pixels_or_twice_as_many_halved(tmp_path, make_video):
    for number, label in enumerate(("jump", "run")):
        (tmp_path / "clips" / label).mkdir(parents=True)
        make_video(tmp_path / "clips" / label / f"{number}.mp4", size="256x224", seconds=0.8)
    dataset, run = tmp_path / "dataset", tmp_path / "run"
    command(main, "run", "--manifest", tmp_path / "clips", "--output", dataset, "--short-side", 224, "--flow", "none")
    how = ("--model", "c3d", "--stream", "rgb", "--batch-size", 2, "--workers", 0, "--steps", 2, "--lr", 0.001)
    for crop in (112, 224):
        where = ("--crop", crop, "--output", run / str(crop))
        command(train_command, "--shards", dataset, "--val-shards", dataset, *how, *where)
        best = run / str(crop) / "best.pt"
        assert "2 clips" in command(evaluate_command, "--shards", dataset, "--rgb", best, "--crop", crop)
        video = tmp_path / "clips" / "run" / "1.mp4"
        assert "run" in command(predict_command, video, "--rgb", best, "--crop", crop, "--short-side", 224)
