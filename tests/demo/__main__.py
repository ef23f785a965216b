"""`make demo`: render clips, serve them on loopback, prepare them through yt-dlp, write a report page.

No network but loopback. Every step is the command that a user would type; it is printed before it runs.
"""

import argparse
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from tests.demo.render import CLASSES, plan_videos, render_all, write_manifest

CLIPS_PER_CLASS_TRAIN = 2
CLIPS_PER_CLASS_VAL = 1
SHORT_SIDE_PIXELS = 64  # flow costs in proportion to the area
WORKERS = 2


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files without a line for each request."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing; yt-dlp reports what it could not fetch."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(prog="python -m tests.demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for all that the demo makes")
    output: Path = parser.parse_args(arguments).output
    console = Console()
    started = time.monotonic()

    console.rule("1/3  Rendering clips")
    videos = plan_videos(CLIPS_PER_CLASS_TRAIN, CLIPS_PER_CLASS_VAL)
    folder = output / "videos"
    folder.mkdir(parents=True, exist_ok=True)
    with Progress(console=console) as progress:
        task = progress.add_task(f"{len(videos)} videos of {len(CLASSES)} motions", total=len(videos))
        render_all(videos, folder, workers=WORKERS, on_done=lambda *_: progress.advance(task))
    train, val, classes = write_manifest(videos, output)

    console.rule("2/3  Preparing: fetch from loopback, trim, 25 fps, TV-L1 flow, shards")
    dataset = output / "dataset"
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    lists = ["--manifest", str(train), "--manifest", str(val), "--classes", str(classes)]
    source = f"http://127.0.0.1:{server.server_port}/{{youtube_id}}.mp4"
    made = ["--output", str(dataset), "--short-side", str(SHORT_SIDE_PIXELS), "--workers", str(WORKERS)]
    kinetics_prep("run", *lists, "--source", source, *made)
    server.shutdown()

    console.rule("3/3  Checking and reporting")
    kinetics_prep("verify", str(dataset), "--decode")
    kinetics_prep("report", str(dataset))

    example = videos[0]
    key = f"{example.youtube_id}_{int(example.start_seconds):06d}_{int(example.end_seconds):06d}"
    print(
        f"""
Done in {time.monotonic() - started:.0f} s. Made in {output}:
  videos/               {len(videos)} rendered videos, the sources
  train.csv, val.csv    the clip lists
  dataset/              shards, index, ledger
  dataset/report.html   totals, frames, colour-coded flow: open it in a browser

Next, for example:
  .venv/bin/kinetics-prep status {dataset}
  .venv/bin/kinetics-prep preview {dataset} -o clip.png -- {key}
  .venv/bin/kinetics-prep run --manifest MY_VIDEOS/ --output mine        (MY_VIDEOS/class/video.mp4)"""
    )


def kinetics_prep(*arguments: str) -> None:
    """Run `kinetics-prep` of this environment; its failure ends the demo."""
    program = Path(sys.executable).with_name("kinetics-prep")
    print("$ kinetics-prep", shlex.join(arguments), flush=True)
    status = subprocess.run([program, *arguments], check=False).returncode
    if status:
        sys.exit(f"kinetics-prep {arguments[0]} ended with status {status}")


if __name__ == "__main__":
    main()
