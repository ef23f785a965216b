"""i3d-predict --features: what I3D sees over time, with its times, of videos longer than a piece."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from flow import decode_flow_codes
from model import I3D, ConvNetLSTM, load_i3d, save_run
from pipeline.video import RgbCoding, encode_rgb, flow_coding, flow_of
from train.decode import network_input, whole_clip
from train.evaluate import CHUNK_FRAMES
from train.predict_command import predict_command

SIDE = 32
SECONDS = 12.0
SMALL = ("--crop", SIDE, "--short-side", SIDE)


def predict(*arguments: object) -> Result:
    return CliRunner().invoke(predict_command, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def long_video(tmp_path_factory, make_video) -> Path:
    """Longer than I3D sees at once."""
    return make_video(tmp_path_factory.mktemp("long") / "long.mp4", size="48x32", seconds=SECONDS)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    for stream, channels in (("rgb", 3), ("flow", 2)):
        save_run(folder / f"{stream}.pt", I3D(3, channels), ["jump", "run", "stand"])
    save_run(folder / "lstm.pt", ConvNetLSTM(3), ["jump", "run", "stand"])
    return folder


def stored(video: Path, folder: Path, start: float = 0.0, end: float | None = None) -> bytes:
    return encode_rgb(video, folder / "rgb.mp4", RgbCoding(short_side=SIDE), start, end).content


def test_features_of_a_long_video_equal_those_of_the_whole(long_video, checkpoints, tmp_path) -> None:
    rgb = checkpoints / "rgb.pt"
    found = predict(long_video, "--rgb", rgb, *SMALL, "--features", tmp_path / "f.npz")
    assert found.exit_code == 0, found.output
    network = load_i3d(rgb, "rgb")
    pixels = torch.from_numpy(whole_clip(stored(long_video, tmp_path), "rgb", SIDE))
    assert len(pixels) == 300 > CHUNK_FRAMES
    with torch.inference_mode():
        whole = network.endpoint(network_input(pixels[None], "rgb"), "Mixed_5c")
        probability = network.classify(whole).mean(2)[0].softmax(0).max().item()
    with np.load(tmp_path / "f.npz", allow_pickle=False) as file:
        assert sorted(file) == ["endpoint", "rgb_features", "rgb_seconds"]
        assert (str(file["endpoint"]), file["rgb_features"].dtype) == ("Mixed_5c", np.float32)
        np.testing.assert_allclose(file["rgb_features"], whole[0].mean((2, 3)).T, atol=1e-4)
        np.testing.assert_allclose(file["rgb_seconds"], np.minimum(8 * np.arange(38) + 5, 299) / 25)
    assert float(found.output.split()[0]) == pytest.approx(probability, abs=1e-4)


def test_both_streams_of_a_stretch_at_another_endpoint(long_video, checkpoints, tmp_path) -> None:
    networks = ("--rgb", checkpoints / "rgb.pt", "--flow", checkpoints / "flow.pt")
    stretch = ("--start", 2, "--end", 2.64)
    written = predict(
        long_video, *networks, *stretch, *SMALL, "--features", tmp_path / "f.npz", "--endpoint", "Conv3d_2c_3x3"
    )
    assert written.exit_code == 0, written.output
    rgb = stored(long_video, tmp_path, 2.0, 2.64)
    flow = flow_of(rgb, flow_coding()).content
    assert len(decode_flow_codes(flow)) == 15
    with np.load(tmp_path / "f.npz", allow_pickle=False) as file:
        for stream, content, steps in (("rgb", rgb, 8), ("flow", flow, 8)):
            pixels = torch.from_numpy(whole_clip(content, stream, SIDE))
            with torch.inference_mode():
                network = load_i3d(checkpoints / f"{stream}.pt", stream)
                whole = network.endpoint(network_input(pixels[None], stream), "Conv3d_2c_3x3")
            assert file[f"{stream}_features"].shape == (steps, 192)
            np.testing.assert_allclose(file[f"{stream}_features"], whole[0].mean((2, 3)).T, atol=1e-4)
        np.testing.assert_allclose(file["rgb_seconds"], 2 + (2 * np.arange(8) + 1) / 25)
        # Of 15 flows the windows reach back by one more; and a flow is between two frames.
        np.testing.assert_allclose(file["flow_seconds"], 2 + (2 * np.arange(8) + 0.5) / 25)


def test_logits_over_time(long_video, checkpoints, tmp_path) -> None:
    written = predict(
        long_video,
        *("--rgb", checkpoints / "rgb.pt", "--end", 1, *SMALL),
        *("--features", tmp_path / "f.npz", "--endpoint", "Logits"),
    )
    with np.load(tmp_path / "f.npz", allow_pickle=False) as file:
        logits = torch.from_numpy(file["rgb_features"])
    assert logits.shape == (3, 3)  # three steps, three classes
    assert float(written.output.split()[0]) == pytest.approx(logits.mean(0).softmax(0).max().item(), abs=1e-4)


def test_fewer_flows_than_i3d_takes_start_over(long_video, checkpoints, tmp_path) -> None:
    written = predict(
        long_video, "--flow", checkpoints / "flow.pt", "--end", 0.36, *SMALL, "--features", tmp_path / "f.npz"
    )
    assert written.exit_code == 0, written.output
    with np.load(tmp_path / "f.npz", allow_pickle=False) as file:
        assert file["flow_features"].shape == (2, 1024)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--rgb", "lstm.pt", "--features", "f.npz"), "--features are of i3d, this network is lstm"),
        (("--rgb", "rgb.pt", "--endpoint", "Mixed_5c"), "--endpoint Mixed_5c wants --features"),
        (("--rgb", "rgb.pt", "--features", "f.npz", "--start", 11.9), "too-short"),
        (("--rgb", "rgb.pt", "--features", "rgb.pt/f.npz", "--end", 1), "File exists"),
    ],
)
def test_features_that_cannot_be_had(long_video, checkpoints, monkeypatch, arguments, said) -> None:
    monkeypatch.chdir(checkpoints)
    (checkpoints / "f.npz").write_text("as before")
    result = predict(long_video, *arguments, *SMALL)
    assert result.exit_code == 1
    assert said in result.output
    assert (checkpoints / "f.npz").read_text() == "as before"
    assert not list(checkpoints.glob("*.partial"))


def test_an_unknown_endpoint(long_video, checkpoints) -> None:
    result = predict(long_video, "--rgb", checkpoints / "rgb.pt", "--features", "f.npz", "--endpoint", "Mixed_6a")
    assert result.exit_code == 2
    assert "Mixed_5c" in result.output
