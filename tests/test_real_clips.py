"""The released network names what happens in real clips, through the whole line: list → clips → shards → I3D."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from flow import tvl1
from flow.files import read_flo
from manifests.sample import RgbCoding
from pipeline.cli import main
from pipeline.video import decode_rgb, encode_rgb
from train.cli import train_command
from train.eval_command import evaluate_command
from train.log import read_metrics
from train.predict_command import predict_command

EXPECTED = {"cleanpool01_000000_000010": "cleaning pool", "eyebrowucf1_000000_000006": "filling eyebrows"}


def command(which, *arguments):
    result = CliRunner().invoke(which, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


@pytest.fixture(scope="module")
def dataset(shared, tmp_path_factory):
    output = tmp_path_factory.mktemp("real")
    data = shared / "data"
    command(
        main, "run", "--manifest", data / "clips.csv", "--source", data / "videos", "--output", output, "--flow", "none"
    )
    return output


@pytest.mark.slow
def test_four_clips_come_out_well(dataset):
    counts = json.loads(command(main, "status", dataset, "--json"))
    assert counts == {"listed": 4, "ok": 4, "failed": {}}
    assert "4 decoded, 0 problems" in command(main, "verify", dataset, "--decode")


@pytest.mark.slow
def test_the_released_network_names_them_by_either_way(dataset, shared, tmp_path):
    weights = shared / "weights" / "rgb_scratch" / "model.ckpt"
    command(evaluate_command, "--shards", dataset, "--split", "val", "--rgb", weights, "--json", tmp_path / "r.json")
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["top1"] == 1
    clips = {clip["key"]: clip for clip in found["clips"]}
    assert {key: clip["top5"][0]["label"] for key, clip in clips.items()} == EXPECTED
    assert all(clip["top5"][0]["probability"] > 0.85 for clip in clips.values())
    video = shared / "data" / "videos" / "eyebrowucf1.avi"
    predicted = json.loads(command(predict_command, video, "--rgb", weights, "--start", 0, "--end", 6, "--json"))
    evaluated = clips["eyebrowucf1_000000_000006"]["top5"]
    assert [place["label"] for place in predicted["top"]] == [place["label"] for place in evaluated]
    for one, other in zip(predicted["top"], evaluated, strict=True):
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-3)


def test_an_avi_whose_index_points_behind_its_first_frame(shared, tmp_path):
    """Preparing keeps the picture: within coding noise of the source, resized by another library."""
    import av
    import cv2

    video = shared / "data" / "videos" / "eyebrowucf1.avi"
    stored = encode_rgb(video, tmp_path / "out.mp4", RgbCoding(), 0, 2)
    assert (stored.frames, stored.width, stored.height) == (50, 342, 256)
    with av.open(str(video)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)][:50]
    wanted = np.stack([cv2.resize(frame, (342, 256), interpolation=cv2.INTER_LINEAR) for frame in frames])
    assert np.abs(decode_rgb(stored.content).astype(float) - wanted).mean() < 5


def test_rubber_whale(shared):
    """Baker et al. 2011, with their true flow; unknown pixels hold 1e9 and more."""
    import cv2

    folder = shared / "data" / "flow"
    frames = np.stack([cv2.imread(str(folder / name), cv2.IMREAD_GRAYSCALE) for name in ("frame10.png", "frame11.png")])
    truth = read_flo(folder / "flow10.flo")
    known = (np.abs(truth) < 1e9).all(-1)
    error = np.hypot(*np.moveaxis(tvl1(frames, threads=1)[0] - truth, -1, 0))[known].mean()
    assert error <= 0.160


# OpenCV is .119 px from itself there when tau is longer by a millionth.
ONE_PAIR_IS_NOT = pytest.mark.xfail(reason="a pair that moves by 9.4 px: mean .077 px", strict=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("cleanpool01.mp4", marks=ONE_PAIR_IS_NOT),
        "eyebrowucf1.avi",
    ],
)
def test_our_flow_of_real_pairs_is_opencvs(shared, name):
    """At short side 256, on pairs that move by a pixel or more on average."""
    import av
    import cv2

    with av.open(str(shared / "data" / "videos" / name)) as container:
        grey = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
    share = 256 / min(grey[0].shape)
    size = round(grey[0].shape[1] * share), round(grey[0].shape[0] * share)
    moving = 0
    for first in sorted({*range(10, len(grey) - 1, len(grey) // 12), *range(10, len(grey) - 1, len(grey) // 5)}):
        pair = np.stack([cv2.resize(g, size, interpolation=cv2.INTER_AREA) for g in grey[first : first + 2]])
        reference = tvl1(pair, backend="opencv")[0]
        if np.hypot(*np.moveaxis(reference, -1, 0)).mean() >= 1:
            moving += 1
            error = np.hypot(*np.moveaxis(tvl1(pair, backend="cpu")[0] - reference, -1, 0))
            assert error.mean() <= 0.03, first
            assert np.percentile(error, 99) <= 0.3, first
    assert moving >= 1


@pytest.mark.slow
def test_flow_of_a_real_clip(shared, tmp_path):
    listed = tmp_path / "list.csv"
    listed.write_text("youtube_id,time_start,time_end,split\nskeleton_hd,0,1,test\n")
    command(main, "run", "--manifest", listed, "--source", shared / "data" / "videos", "--output", tmp_path / "out")
    assert "1 decoded, 0 problems" in command(main, "verify", tmp_path / "out", "--decode")


@pytest.mark.slow
def test_the_released_network_learns_new_classes_by_heart(shared, tmp_path):
    """Fine-tuning with a new head: four real clips, a class each, on the CPU."""
    listed = tmp_path / "list.csv"
    rows = ["cleanpool01.mp4,pool,0,4", "eyebrowucf1.avi,eyebrows,0,4", "skeleton_hd.mp4,skeleton,0,2"]
    listed.write_text("path,label,start,end\n" + "\n".join([*rows, "longhd1080p.mp4,street,31,35"]) + "\n")
    data = ("--manifest", listed, "--source", shared / "data" / "videos", "--flow", "none")
    command(main, "run", *data, "--output", tmp_path / "data")
    weights = ("--init", shared / "weights" / "rgb_scratch" / "model.ckpt", "--lr", 0.1)
    size = ("--steps", 12, "--batch-size", 4, "--frames", 16, "--workers", 1, "--evaluate-every", 100)
    run = tmp_path / "run"
    command(train_command, "--shards", tmp_path / "data", "--stream", "rgb", "--output", run, *weights, *size)
    losses = [line["loss"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line]
    assert losses[0] > 1
    assert min(losses) < 0.1
    command(
        evaluate_command, "--shards", tmp_path / "data", "--rgb", run / "model.pt", "--json", tmp_path / "found.json"
    )
    assert json.loads((tmp_path / "found.json").read_text())["top1"] == 1
