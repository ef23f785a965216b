"""Networks are tested on pictures such as they were trained on, and other ones are said or refused."""

import json

import pytest
from click.testing import CliRunner
from networks import random_network

from model import Checkpoint, load_checkpoint, save_run
from tests import golden
from tests.demo.render import CLASSES
from train.convert import convert_command
from train.eval_command import evaluate_command
from train.picture_size import trained_on
from train.predict_command import predict_command

DATA = ("--shards", golden.DATASET, "--split", "val", "--frames", 9)  # of short side 48
TRAINED = {"rgb.pt": ("rgb", 32, 48), "flow.pt": ("flow", 40, 48), "larger.pt": ("flow", 32, 64),
           "tars.pt": ("rgb", 40, None), "unknown.pt": ("rgb", None, None)}  # fmt: skip


def command(which, *arguments, status=0):
    result = CliRunner().invoke(which, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output + repr(result.exception)
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Networks of one set of classes, trained on various pictures."""
    folder = tmp_path_factory.mktemp("networks")
    for name, (stream, crop, short_side) in TRAINED.items():
        trained_on = {"crop": crop, "short_side": short_side, "hold_out": 0.2}
        save_run(folder / name, random_network("i3d", (stream,), 4), CLASSES[:4], **trained_on)
    return folder


@pytest.fixture(scope="module")
def video(tmp_path_factory, make_video):
    return make_video(tmp_path_factory.mktemp("video") / "a.mp4", size="96x64", seconds=0.48)


def evaluated(folder, *arguments):
    result = command(evaluate_command, *DATA, *arguments, "--json", folder / "found.json")
    found = json.loads((folder / "found.json").read_text())
    return found["protocol"]["crop"], found["protocol"]["short_side"], result.stderr


def test_evaluation_is_at_the_crop_of_the_training(folder):
    rgb, flow = ("--rgb", folder / "rgb.pt"), ("--flow", folder / "flow.pt")
    assert evaluated(folder, *rgb) == (32, 48, "")
    assert evaluated(folder, *flow) == (40, 48, "")
    refused = command(evaluate_command, *DATA, *rgb, *flow, status=1).stderr
    assert "--crop: rgb was trained with 32, flow was trained with 40 pixels: say with which to test them" in refused
    assert evaluated(folder, *rgb, *flow, "--crop", 32) == (
        32, 48, "Warning: --crop is 32, but flow was trained with 40 pixels\n"
    )  # fmt: skip
    assert evaluated(folder, "--flow", folder / "larger.pt") == (
        32, 48, "Warning: the data's short side is 48, but flow was trained with 64 pixels\n"
    )  # fmt: skip


def test_what_is_unknown_is_neither_refused_nor_said(folder):
    unknown = ("--rgb", folder / "unknown.pt")
    assert evaluated(folder, *unknown, "--flow", folder / "flow.pt") == (40, 48, "")
    assert evaluated(folder, *unknown, "--crop", 32) == (32, 48, "")
    assert "smaller than the crop of 224x224" in command(evaluate_command, *DATA, *unknown, status=1).stderr


def test_released_networks_are_of_the_papers_pictures():
    assert trained_on(Checkpoint({}, "i3d", ("rgb",), 400, "tensorflow", {})) == (224, 256)


@pytest.mark.slow
def test_videos_are_prepared_as_the_training_data(folder, video, tmp_path):
    def predicted(*arguments):
        result = command(predict_command, video, *arguments, "--json")
        found = json.loads(result.stdout)
        return found["crop"], found["short_side"], result.stderr, found["top"]

    rgb = ("--rgb", folder / "rgb.pt")
    page = tmp_path / "page.html"
    *found, top = predicted(*rgb, "--page", page)
    assert found == [32, 48, ""]
    assert "squares of 32 pixels from pictures of short side 48" in page.read_text()
    assert predicted(*rgb, "--crop", 32, "--short-side", 48)[-1] == top
    *found, other = predicted(*rgb, "--short-side", 64)
    assert found == [32, 64, "Warning: --short-side is 64, but rgb was trained with 48 pixels\n"]
    assert other != top

    *found, _ = predicted("--rgb", folder / "tars.pt", "--flow", folder / "flow.pt")
    assert found[:2] == [40, 48]
    assert "rgb does not say of which short side its pictures were: --short-side 48 is taken" in found[2]
    refused = command(predict_command, video, *rgb, "--flow", folder / "larger.pt", status=1).stderr
    assert "--short-side: rgb was trained with 48, flow was trained with 64 pixels" in refused
    refused = command(predict_command, video, *rgb, "--crop", 64, status=1).stderr
    assert "pictures of short side 48 are smaller than the crop of 64x64 (--crop)" in refused


def test_conversion_keeps_them(folder, tmp_path):
    for options in ((), ("--classes", 7)):
        command(convert_command, folder / "rgb.pt", tmp_path / "rgb.safetensors", *options)
        found = load_checkpoint(tmp_path / "rgb.safetensors")
        assert (found.crop, found.short_side, found.hold_out) == (32, 48, 0.2)
