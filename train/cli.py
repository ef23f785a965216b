"""The commands `i3d-train` and `i3d-report`: parse, call a function, put errors into words."""

import os
from pathlib import Path
from typing import Any, get_args

import click
from click.core import ParameterSource
from torch.distributed.elastic.multiprocessing.errors import record

from manifests.clip import printable
from manifests.lease import LeaseHeld
from model import Architecture, CheckpointError
from train.options import CONTEXT, CROP_OPTION, HELD_OUT_SHARE, MAX_BAD_OPTION, WORKERS_OPTION, FiniteRange
from train.page import read_runs, write_page
from train.pictures import clip_figures
from train.quarantine import TooManyBad
from train.recipes import RECIPES, RecipeName, describe, lay_recipe
from train.run import RunError
from train.schedule import SCHEDULES
from train.start import MAXIMUM_STEPS, Options, start
from train.state import NonFiniteLossError
from train.stream import Inputs


@click.command("i3d-train", context_settings=CONTEXT)
@click.option("--shards", required=True, help="A dataset's folder (DIR or DIR@SNAPSHOT), or tars with braces or globs.")
@click.option("--split", help="Train on this split, such as train or train1; needed where there are several.")
@click.option(
    "--model",
    type=click.Choice(get_args(Architecture)),
    default="i3d",
    show_default=True,
    help="One of the paper's five architectures.",
)
@click.option(
    "--stream",
    type=click.Choice(get_args(Inputs)),
    required=True,
    help="What it sees; both: of two-stream and fused, which are trained end to end.",
)
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="The run's folder.")
@click.option("--val-shards", help="Test on these whole clips at every evaluation.")
@click.option("--val-split", help="Only this split of --val-shards.")
@click.option(
    "--hold-out",
    type=HELD_OUT_SHARE,
    help="Train without this share of the clips, and test on it; whole source videos of each class.",
)
@click.option("--steps", type=click.IntRange(1, MAXIMUM_STEPS), help="How many steps in all; this or --epochs.")
@click.option("--epochs", type=FiniteRange(min=0, min_open=True), help="How often to see every clip.")
@click.option("--recipe", type=click.Choice(RECIPES), help="Train as was published; prints what that sets.")
@click.option("--batch-size", type=click.IntRange(1, 100_000), default=6, show_default=True, help="Clips a step.")
@click.option(
    "--accumulate",
    type=click.IntRange(1, 100_000),
    default=1,
    show_default=True,
    help="Passes that a rank's share of a batch is taken in, to spare memory.",
)
@click.option("--frames", type=click.IntRange(1, 10_000), help="Frames of a window of i3d.  [default: 64]")
@CROP_OPTION
@click.option("--lr", type=FiniteRange(min=0, min_open=True), help="Learning rate.  [default: 0.1 · batch / 384]")
@click.option(
    "--schedule",
    type=click.Choice(SCHEDULES),
    default="plateau",
    show_default=True,
    help="Of the learning rate: divided by 10 when the loss no longer falls (paper); as DeepMind's released networks "
    "were trained, scaled to the steps; or half a cosine.",
)
@click.option("--warm-up-steps", type=click.IntRange(min=0), default=0, show_default=True, help="Of a rising rate.")
@click.option(
    "--patience",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Of plateau: evaluations in a row without a new lowest loss.",
)
@click.option("--weight-decay", type=FiniteRange(min=0), default=1e-7, show_default=True)
@click.option("--dropout", type=FiniteRange(0, 1, max_open=True), default=0.5, show_default=True)
@click.option("--clip-gradient", type=FiniteRange(min=0, min_open=True), help="Largest norm of a gradient.")
@click.option(
    "--sync-bn/--no-sync-bn", default=False, show_default=True, help="Normalise over the batches of all ranks."
)
@click.option(
    "--flip/--no-flip",
    default=True,
    show_default=True,
    help="Mirror half of the clips; not for classes that tell left from right.",
)
@click.option("--init", type=click.Path(path_type=Path), help="Begin with a checkpoint's weights.")
@click.option(
    "--resume",
    type=click.Choice(["never", "auto"]),
    default="never",
    show_default=True,
    help="auto: go on with the run in --output if there is one.",
)
@click.option("--evaluate-every", type=click.IntRange(min=1), help="Steps.  [default: an epoch, 100 at least]")
@click.option("--checkpoint-every", type=click.IntRange(min=1), default=500, show_default=True, help="Steps.")
@MAX_BAD_OPTION
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16"]),
    default="auto",
    show_default=True,
    help="auto: bf16 on GPUs that multiply it natively, else fp32.",
)
@click.option("--compile/--no-compile", default=False, show_default=True, help="Compile the network (torch.compile).")
@click.option(
    "--checkpoint-activations/--no-checkpoint-activations",
    default=False,
    show_default=True,
    help="Compute layers anew for the backward pass: a third more time, a fraction of the memory; not of c3d.",
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
@WORKERS_OPTION
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep shards of URLs in this folder of the node, for all its ranks and runs.",
)
@click.option(
    "--cache-gigabytes",
    type=FiniteRange(min=0, min_open=True, max=1e6),
    default=100.0,
    show_default=True,
    help="Its size; the least recently used shards make room.",
)
@click.option("--bench-data", is_flag=True, help="Only say how fast batches are loaded, and what the time goes to.")
@click.pass_context
def train_command(context: click.Context, /, recipe: RecipeName | None, **options: Any) -> None:
    """Train I3D, or another architecture of the paper, on the shards that kinetics-prep wrote.

    Random windows, crops and flips; SGD with momentum 0.9 (paper, §2.5). What is seen when depends on the data, the
    seed and the step alone. Ctrl-C or SIGTERM saves and ends; --resume auto goes on, with any number of ranks and
    workers.

    Example: i3d-train --shards k400 --split train --stream rgb --epochs 40 --output runs/rgb

    On 8 GPUs: torchrun --nproc-per-node 8 --no-python i3d-train …
    """
    try:
        if recipe is not None:
            typed = context.get_parameter_source
            laid = lay_recipe(
                recipe,
                {name: value for name, value in options.items() if typed(name) == ParameterSource.COMMANDLINE},
                int(os.environ.get("WORLD_SIZE", "1")),
            )
            options |= laid.options
            if os.environ.get("RANK", "0") == "0":
                click.echo(describe(recipe, laid))
        # torchrun repeats what went wrong at the end of its own words.
        begin = record(start) if "TORCHELASTIC_RUN_ID" in os.environ else start
        begin(Options(**options))
    except (ValueError, CheckpointError, RunError, LeaseHeld, NonFiniteLossError, TooManyBad, OSError) as error:
        raise click.ClickException(printable(str(error))) from error


@click.command("i3d-report", context_settings=CONTEXT)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--output", "-o", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The HTML file.")
@click.option(
    "--clips",
    type=click.IntRange(0, 100),
    default=4,
    show_default=True,
    help="How many held-out clips to show, with their flow and what each run's best.pt says of them.",
)
def report_command(runs: tuple[Path, ...], output: Path, clips: int) -> None:
    """Compare training runs on one HTML page.

    Losses, rates, speed, evaluations, what differs between their configurations, samples left out, and a few clips.

    Example: i3d-report runs/rgb runs/flow --output page.html
    """
    try:
        if output.suffix != ".html":
            raise ValueError(f"{output}: the page's name must end in .html")
        found = read_runs(runs)
        figures, left_out = clip_figures(found, clips) if clips else ([], [])
        write_page(found, output, figures, left_out)
        click.echo(output)
    except (ValueError, OSError) as error:
        raise click.ClickException(printable(str(error))) from error
