"""The commands `i3d-eval` and `i3d-predict`: parse, call one function, turn its errors into messages."""

import json
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import track

from manifests.clip import printable
from manifests.files import write_file
from manifests.sample import FormatError
from model import CheckpointError
from pipeline.video import VideoError
from train.evaluate import evaluate, load_streams, summary
from train.predict import predict
from train.stream import open_samples

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
RGB_OPTION = click.option("--rgb", type=click.Path(path_type=Path), help="Checkpoint of the RGB stream.")
FLOW_OPTION = click.option("--flow", type=click.Path(path_type=Path), help="Checkpoint of the flow stream.")


@click.command("i3d-eval", context_settings=CONTEXT)
@click.option("--shards", required=True, help="A dataset's folder (DIR or DIR@SNAPSHOT), or tars with braces or globs.")
@click.option("--split", help="Only this split.")
@RGB_OPTION
@FLOW_OPTION
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the results here.")
def evaluate_command(
    shards: str, split: str | None, rgb: Path | None, flow: Path | None, json_file: Path | None
) -> None:
    """Evaluate I3D on whole clips: centre crop, logits averaged over time, streams added.

    A checkpoint is a run's file, the prefix of a TensorFlow checkpoint, or a file of one of the PyTorch ports.

    Example: i3d-eval --shards k400 --split val --rgb rgb_scratch/model.ckpt --json result.json
    """
    try:
        samples = open_samples(shards, split)
        streams = load_streams(rgb, flow, samples.classes)
        console = Console(file=sys.stderr)
        results = list(track(evaluate(samples, streams), "clips", total=len(samples), console=console, transient=True))
        found = summary(results, samples, streams)
        if json_file is not None:
            write_file(json_file.resolve(), json.dumps(found, indent=1, ensure_ascii=False).encode() + b"\n")
    except (FormatError, CheckpointError, OSError) as error:
        raise click.ClickException(str(error)) from error
    _print_summary(found)


@click.command("i3d-predict", context_settings=CONTEXT)
@click.argument("video", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@RGB_OPTION
@FLOW_OPTION
@click.option("--start", type=click.FloatRange(min=0), default=0.0, help="Seconds; by default the beginning.")
@click.option("--end", type=click.FloatRange(min=0), help="Seconds; by default the end.")
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="How many classes to name.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def predict_command(
    video: Path, rgb: Path | None, flow: Path | None, start: float, end: float | None, top: int, as_json: bool
) -> None:
    """Say what happens in a video file, or in a stretch of it.

    Example: i3d-predict clip.mp4 --rgb rgb_scratch/model.ckpt --start 10 --end 20
    """
    try:
        found = predict(video, load_streams(rgb, flow), start, end, top)
    except (VideoError, CheckpointError, ValueError) as error:
        message = "\n".join(printable(str(error)).splitlines()[-3:])
        raise click.ClickException(f"{video}: {message}" if isinstance(error, VideoError) else message) from error
    if as_json:
        click.echo(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        for place in found["top"]:
            click.echo(f"{place['probability']:.4f}  {place['label']}")


def _print_summary(found: dict[str, Any]) -> None:
    for clip in found["clips"]:
        best = clip["top5"][0]
        label = printable(clip["label"] or "none")
        click.echo(f"{clip['key']}  {best['probability']:.3f} {best['label']}  (label: {label})")
    together = [("together", found)] if len(found["streams"]) > 1 else []
    for name, shares in [*found["streams"].items(), *together]:
        if shares["top1"] is not None:
            click.echo(f"{name:<9} top-1 {shares['top1']:.4f}  top-5 {shares['top5']:.4f}")
    click.echo(f"{len(found['clips'])} clips, {found['clips_labelled']} with a label")
