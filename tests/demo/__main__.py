"""`make demo`: render clips, prepare them through yt-dlp from loopback, train both streams, test them, write a page.

No network but loopback. Every step is a command that a user would type; it is printed before it runs.
"""

import argparse
import json
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from manifests.files import write_file
from tests.demo.page import read_json, summary, write_page
from tests.demo.render import CLASSES, Video, plan_videos, render_all, write_manifest

# Four of the ten classes and small pictures: flow costs in proportion to their area, training too.
LABELS = CLASSES[:4]
CLIPS_PER_CLASS_TRAIN = 24
CLIPS_PER_CLASS_VAL = 24
CLIP_SECONDS = 1
SIZES = ((160, 120), (120, 160), (128, 128), (150, 120))
SHORT_SIDE_PIXELS = 48
CROP_PIXELS = 48
FRAMES = 16
BATCH_SIZE = 8
STEPS = 100
EVALUATE_EVERY = 50
NETWORKS = ("flow", "rgb", "single frame")
LEARNING_RATE = 0.0005
WORKERS = 2


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files without a line for each request."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing; yt-dlp reports what it could not fetch."""

    def copyfile(self, source: Any, outputfile: Any) -> None:
        """Send a file, unless a reader that has what it wanted hangs up."""
        with suppress(BrokenPipeError, ConnectionResetError):
            super().copyfile(source, outputfile)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(prog="python -m tests.demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for all that the demo makes")
    parser.add_argument("--seed", type=int, default=0, help="of the clips and of the training")
    options = parser.parse_args(arguments)
    output: Path = options.output
    console = Console()
    started = time.monotonic()

    console.rule("1/5  Rendering clips")
    videos = plan_videos(CLIPS_PER_CLASS_TRAIN, CLIPS_PER_CLASS_VAL, CLIP_SECONDS, options.seed, LABELS, SIZES)
    render(videos, output / "videos", console)
    console.rule("2/5  Preparing: fetch from loopback, trim, 25 fps, TV-L1 flow, shards")
    prepare(videos, output)
    console.rule("3/5  Training: I3D on flow, I3D on RGB, and a classifier of single frames")
    runs = {name: output / "runs" / name.replace(" ", "-") for name in NETWORKS}
    for name, run in runs.items():
        train(output / "dataset", name, run, options.seed)
    console.rule("4/5  Testing on held-out clips")
    found, single = test(output, runs)
    console.rule("5/5  Reporting")
    page = write_page(output, runs, found, single)
    result = summary(found, single, time.monotonic() - started)
    write_file(output / "summary.json", json.dumps(result, indent=1).encode() + b"\n")
    example = videos[-1]
    say_what_was_made(output, page, result, example)


def render(videos: Sequence[Video], folder: Path, console: Console) -> None:
    """Render the videos that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    with Progress(console=console) as progress:
        task = progress.add_task(
            f"{len(videos)} videos of {len({video.label for video in videos})} motions", total=len(videos)
        )
        render_all(videos, folder, workers=WORKERS, on_done=lambda *_: progress.advance(task))


def prepare(videos: Sequence[Video], output: Path) -> None:
    """Serve the videos on loopback, make the dataset from there, and check it."""
    train, val, classes = write_manifest(videos, output)
    dataset = output / "dataset"
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(output / "videos")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    lists = ["--manifest", train, "--manifest", val, "--classes", classes]
    source = f"http://127.0.0.1:{server.server_port}/{{youtube_id}}.mp4"
    made = ["--output", dataset, "--short-side", SHORT_SIDE_PIXELS, "--workers", WORKERS]
    run("kinetics-prep", "run", *lists, "--source", source, *made)
    server.shutdown()
    run("kinetics-prep", "verify", dataset, "--decode")


def train(dataset: Path, name: str, folder: Path, seed: int) -> None:
    """Train one network; that of single frames sees one frame again and again where the others see a window."""
    stream, frames = ("rgb", 1) if name == "single frame" else (name, FRAMES)
    data = ["--shards", dataset, "--split", "train", "--stream", stream, "--output", folder, "--resume", "auto"]
    # Mirroring would turn "moving left" into "moving right".
    views = ["--frames", frames, "--crop", CROP_PIXELS, "--no-flip"]
    steps = ["--steps", STEPS, "--batch-size", BATCH_SIZE, "--lr", LEARNING_RATE, "--seed", seed]
    # So patient that no schedule tells the three trainings apart.
    schedule = ["--evaluate-every", EVALUATE_EVERY, "--patience", 100]
    curve = ["--val-shards", dataset, "--val-split", "val"]  # of whole clips, which is not how single frames are tested
    run("i3d-train", *data, *views, *steps, *schedule, *(curve if frames > 1 else []))


def test(output: Path, runs: dict[str, Path]) -> tuple[dict[str, object], dict[str, object]]:
    """Test both streams together, and the classifier of single frames; gives what `i3d-eval` found."""
    data = ["--shards", output / "dataset", "--split", "val"]  # in pictures as the networks were trained on
    networks = ["--rgb", runs["rgb"] / "model.pt", "--flow", runs["flow"] / "model.pt"]
    both, single = output / "two-stream.json", output / "single-frame.json"
    run("i3d-eval", *data, *networks, "--json", both)
    run("i3d-eval", *data, "--rgb", runs["single frame"] / "model.pt", "--frames", 1, "--json", single)
    return read_json(both), read_json(single)


def say_what_was_made(output: Path, page: Path, result: dict[str, object], example: Video) -> None:
    """The last words."""
    networks = f"--rgb {output}/runs/rgb/model.pt --flow {output}/runs/flow/model.pt"
    times = f"--start {example.start_seconds} --end {example.end_seconds}"
    video = f"{output}/videos/{example.youtube_id}.mp4"
    print(
        f"""
Held-out clips right: both streams {result["both"]:.0%}, flow {result["flow"]:.0%}, RGB {result["rgb"]:.0%}, \
single frames {result["single_frame"]:.0%}; chance is {1 / len(LABELS):.0%}.

Done in {result["seconds"]:.0f} s. Made in {output}:
  report.html           results, curves, predictions, frames and flow: open it in a browser
  summary.json          the shares above
  videos/               rendered videos, the sources; train.csv, val.csv: the clip lists
  dataset/              shards, index, ledger
  runs/                 the trainings: networks, metrics, tensorboard

Next, for example:
  .venv/bin/i3d-predict {networks} {times} -- {video}
  .venv/bin/tensorboard --logdir {output}/runs
  .venv/bin/kinetics-prep run --manifest MY_VIDEOS/ --output mine        (MY_VIDEOS/class/video.mp4)"""
    )


def run(program: str, *arguments: object) -> None:
    """Run a command of this environment; its failure ends the demo."""
    words = [str(argument) for argument in arguments]
    print("$", program, shlex.join(words), flush=True)
    status = subprocess.run([Path(sys.executable).with_name(program), *words], check=False).returncode
    if status:
        sys.exit(f"{program} ended with status {status}")


if __name__ == "__main__":
    main()
