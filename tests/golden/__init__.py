"""The golden loss curves: 20 steps of each stream on a few of the demo's clips, which lie here as a dataset.

The curves are computed in double precision and at a tiny learning rate. In steps of ordinary size the last bits of a
sum, which differ between processors, grow tenfold a step in a network of so many batch normalisations: with one thread
and with two, losses were .3 apart after 20 steps. So computed, they are 2e-11 apart.
"""

from pathlib import Path

import torch
from click.testing import CliRunner

from model import Stream
from pipeline.cli import main as kinetics_prep
from tests.demo.render import CLASSES, plan_videos, render_all, write_manifest
from train.cli import train_command
from train.log import read_metrics

DATASET = Path(__file__).with_name("dataset")
LOSSES = Path(__file__).with_name("losses.json")
STEPS = 20
TOLERANCE = 1e-6


def make_dataset(folder: Path) -> Path:
    """Eight training clips and four held-out ones of one second, with flow, at short side 48."""
    videos = plan_videos(2, 1, clip_seconds=1, labels=CLASSES[:4], sizes=((160, 120), (128, 128)))
    render_all(videos, folder / "videos")
    train, val, classes = write_manifest(videos, folder)
    lists = ["--manifest", train, "--manifest", val, "--classes", classes, "--source", folder / "videos"]
    arguments = ["run", *lists, "--output", folder / "dataset", "--short-side", 48]
    CliRunner().invoke(kinetics_prep, [str(argument) for argument in arguments], catch_exceptions=False)
    return folder / "dataset"


def losses(stream: Stream, folder: Path, *options: str) -> list[float]:
    """Loss of each step of the golden run, with the run's folder at `folder`."""
    data = ["--shards", str(DATASET), "--split", "train", "--stream", stream, "--output", str(folder)]
    size = ["--batch-size", "4", "--frames", "9", "--crop", "48", "--workers", "1", "--precision", "fp32"]
    steps = ["--steps", str(STEPS), "--lr", "1e-5", "--evaluate-every", "1000"]
    torch.set_default_dtype(torch.float64)
    try:
        result = CliRunner().invoke(train_command, [*data, *size, *steps, *options], catch_exceptions=False)
    finally:
        torch.set_default_dtype(torch.float32)
    assert result.exit_code == 0, result.output
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
