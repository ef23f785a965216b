"""The golden loss curves: 20 steps of each stream on a few of the demo's clips.

A change without numeric effect reproduces them. After one with an effect, look at what changed and write them anew:

    python -m tests.golden
"""

import json
import tempfile
from pathlib import Path

from click.testing import CliRunner

from model import Stream
from pipeline.cli import main as kinetics_prep
from tests.demo.render import CLASSES, plan_videos, render_all, write_manifest
from train.cli import train_command
from train.log import read_metrics

FILE = Path(__file__).with_name("golden_losses.json")
STEPS = 20


def make_dataset(folder: Path) -> Path:
    """Eight training clips and four held-out ones of one second, with flow, at short side 48."""
    videos = plan_videos(2, 1, clip_seconds=1, labels=CLASSES[:4], sizes=((160, 120), (128, 128)))
    render_all(videos, folder / "videos")
    train, val, classes = write_manifest(videos, folder)
    lists = ["--manifest", train, "--manifest", val, "--classes", classes, "--source", folder / "videos"]
    arguments = ["run", *lists, "--output", folder / "dataset", "--short-side", 48]
    CliRunner().invoke(kinetics_prep, [str(argument) for argument in arguments], catch_exceptions=False)
    return folder / "dataset"


def losses(dataset: Path, stream: Stream, folder: Path, *options: str) -> list[float]:
    """Loss of each step of the golden run."""
    data = ["--shards", str(dataset), "--split", "train", "--stream", stream, "--output", str(folder)]
    size = ["--batch-size", "4", "--frames", "16", "--crop", "40", "--workers", "1", "--precision", "fp32"]
    steps = ["--steps", str(STEPS), "--lr", "0.002", "--evaluate-every", str(STEPS)]
    result = CliRunner().invoke(train_command, [*data, *size, *steps, *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        data = make_dataset(Path(temporary))
        curves = {stream: losses(data, stream, Path(temporary) / stream) for stream in ("rgb", "flow")}
    FILE.write_text(json.dumps(curves, indent=1) + "\n")
