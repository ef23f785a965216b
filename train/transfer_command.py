"""The command `i3d-transfer`: one cell of table 4, with i3d-train's own options for the trainings that it needs."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np
import torch
from click.core import ParameterSource

from manifests.clip import printable
from manifests.lease import LeaseHeld
from model import Architecture, Checkpoint, CheckpointError, load_checkpoint, save_run
from train.children import ProgramFailed
from train.cli import train_command
from train.decode import Crops
from train.frozen import features_of, with_softmax
from train.hold_out import hold_out
from train.loader import Bad, decoding_processes, naming_dead_workers
from train.options import CONTEXT, CROPS_OPTION, FLIPS_OPTION, HELD_OUT_SHARE
from train.picture_size import crop_to_show, warn_of_others
from train.progress import shown
from train.quarantine import TooManyBad
from train.recipes import RecipeName, lay_recipe
from train.run import RunError, identity
from train.schedule import Schedule, rate_of_batch, schedule_steps
from train.softmax import Labelled, Training, train_softmax
from train.start import MAXIMUM_STEPS
from train.stream import Inputs, Samples, at_snapshot, open_samples, streams_of, trainable_samples
from train.transfer import NETWORK, RESULT, Candidate, Cell, Programs, Setting, best_of, run_cell, snapshot_of

RECIPE_OF: dict[Setting, RecipeName] = {"original": "original", "fixed": "finetune", "full-ft": "finetune"}
CANDIDATES = (1.0, 0.3, 0.1)  # of the rate that the released networks were trained with, in proportion to the batch
FIXED_RATES = (0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)  # of a softmax over standardised features; seconds each
# i3d-train's options that are this command's as well: what decides the result, and how it is come by.
OF_I3D_TRAIN = (
    *("frames", "crop", "schedule", "warm_up_steps", "patience", "weight_decay", "dropout", "clip_gradient"),
    *("sync_bn", "flip", "evaluate_every", "precision", "seed"),
)
NOT_OF_FIXED = ("frames", "dropout", "clip_gradient", "sync_bn")  # a softmax over features has none of it
HOW = ("checkpoint_every", "max_bad", "compile", "checkpoint_activations", "workers", "cache", "cache_gigabytes")


@dataclass(frozen=True)
class Asked:
    """The options of i3d-transfer.

    Those of i3d-train's that are its as well are in `training` by keyword, with their defaults; `typed` names those of
    them that the user typed, which alone are handed on.
    """

    shards: str
    train_split: str
    test_split: str
    val_split: str | None
    hold_out: float
    setting: Setting
    rates: tuple[float, ...] | None
    output: Path
    features: Path | None
    launcher: tuple[str, ...]
    crops: Crops
    flips: bool
    model: Architecture
    stream: Inputs
    init: Path | None
    training: dict[str, Any]
    typed: frozenset[str]


def _rates(_: click.Context, option: click.Parameter, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        rates = tuple(float(word) for word in text.split(","))
    except ValueError as error:
        raise click.BadParameter(
            f"{text!r}: want numbers with commas between, such as 0.1,0.01", param=option
        ) from error
    if not all(math.isfinite(rate) and rate > 0 for rate in rates) or len(set(rates)) < len(rates):
        raise click.BadParameter(f"{text!r}: want different numbers above 0", param=option)
    return rates


def _launcher(_: click.Context, option: click.Parameter, text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise click.BadParameter(f"{text!r}: {error}", param=option) from error


@click.command("i3d-transfer", context_settings=CONTEXT)
@click.option("--shards", required=True, help="A dataset's folder (DIR or DIR@SNAPSHOT), or tars with braces or globs.")
@click.option("--train-split", required=True, help="Train on this split, such as train1.")
@click.option("--test-split", required=True, help="Test on this one, such as test1; nothing is chosen on it.")
@click.option("--val-split", help="Choose the learning rate on this one; else on --hold-out.")
@click.option(
    "--hold-out",
    type=HELD_OUT_SHARE,
    default=0.2,
    show_default=True,
    help="Without --val-split: choose the rate on this share of the training clips, then train on all of them.",
)
@click.option(
    "--setting",
    type=click.Choice(get_args(Setting)),
    required=True,
    help="Train from scratch (or from ImageNet's weights as --init); only a softmax over --init's frozen features; or "
    "all of --init.",
)
@click.option(
    "--rates",
    callback=_rates,
    help="Learning rates to choose from; one is taken as it is.  [default: 1, 0.3 and 0.1 times 0.1 · batch / 384; of "
    "fixed 0.1, 0.03, … 0.0001]",
)
@click.option(
    "--steps",
    type=click.IntRange(1, MAXIMUM_STEPS),
    help="Of each training.  [default: 5000 of the default batch, as many clips in others]",
)
@click.option("--batch-size", type=click.IntRange(1, 100_000), help="Clips a step.  [default: 96, of c3d 240]")
@click.option(
    "--accumulate",
    type=click.IntRange(1, 100_000),
    help="Passes that a rank's share of a batch is taken in, to spare memory.  [default: of 6 clips, of c3d 15]",
)
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="The cell's folder.")
@click.option(
    "--features",
    type=click.Path(file_okay=False, path_type=Path),
    help="Of fixed: keep features of clips in this folder, for several cells.  [default: in --output]",
)
@click.option(
    "--launcher",
    callback=_launcher,
    default="",
    help="Words before i3d-train, not of fixed, such as 'torchrun --nproc-per-node 8 --no-python'.",
)
@CROPS_OPTION
@FLIPS_OPTION
@click.pass_context
def transfer_command(context: click.Context, /, **options: Any) -> None:
    """Train and test one cell of the paper's table 4: Original, Fixed or Full-FT.

    As i3d-train --recipe original or finetune: up to 5k steps (paper, §2.5), the learning rate chosen on validation
    clips. i3d-train and i3d-eval run one after another, of fixed only the latter; begun again, it goes on where it was
    stopped. The result is in OUTPUT/result.json, the network in OUTPUT/network.pt. Fixed sees clips whole, as they are
    tested: without windows, flips and dropout.

    Example: i3d-transfer --shards ucf101 --train-split train1 --test-split test1 --stream rgb --setting full-ft
    --init k400/best.pt --output cells/i3d-rgb
    """
    names = ("steps", "batch_size", "accumulate", *OF_I3D_TRAIN, *HOW)
    training = {name: options.pop(name) for name in names}
    typed = frozenset(name for name in names if context.get_parameter_source(name) == ParameterSource.COMMANDLINE)
    asked = Asked(**options, training=training, typed=typed)
    try:
        found = transfer(asked)
    except (ValueError, CheckpointError, RunError, LeaseHeld, ProgramFailed, TooManyBad, OSError) as error:
        raise click.ClickException(printable(str(error))) from error
    except KeyboardInterrupt:
        raise click.ClickException("stopped; the same command goes on") from None
    chosen = found["chosen"]
    for candidate in chosen["candidates"]:
        click.echo(f"rate {candidate['rate']:g}  {_came_to(candidate)}")
    words = f"{asked.setting}, rate {chosen['rate']:g}: top-1 {found['top1']:.4f}  top-5 {found['top5']:.4f}"
    click.echo(f"{words}  {asked.output / RESULT}")


def _came_to(candidate: Mapping[str, Any]) -> str:
    if candidate["val_top1"] is None:
        return "diverged"
    return f"validation top-1 {candidate['val_top1']:.4f}  loss {candidate['val_loss']:.4g}"


transfer_command.params += [
    option for option in train_command.params if option.name in ("model", "stream", "init", *OF_I3D_TRAIN, *HOW)
]


def transfer(asked: Asked) -> dict[str, Any]:
    """Find the clips and the initial weights, say what the cell is, and run it; gives `result.json`.

    Raises:
        ValueError, CheckpointError: options, data or initial weights that cannot be used.
        RunError, ProgramFailed, LeaseHeld, OSError: as `train.transfer.run_cell`.
    """
    _check(asked)
    initial = _initial(asked)
    snapshot = snapshot_of(asked.output)
    asked = replace(asked, shards=asked.shards if snapshot is None else at_snapshot(asked.shards, snapshot))
    samples = _samples(asked, asked.train_split, "--train-split")
    if samples.snapshot is not None:
        asked = replace(asked, shards=at_snapshot(asked.shards, samples.snapshot))
    validation = _samples(asked, asked.val_split, "--val-split") if asked.val_split is not None else None
    test = _samples(asked, asked.test_split, "--test-split")
    values = _values(asked)
    released = rate_of_batch(values["batch_size"])
    candidates = (
        FIXED_RATES if asked.setting == "fixed" else tuple(float(f"{share * released:.2g}") for share in CANDIDATES)
    )
    rates = asked.rates or candidates
    cell = Cell(
        model=asked.model,
        stream=asked.stream,
        setting=asked.setting,
        initial=initial.sha256 if initial is not None else None,
        rates=rates,
        hold_out=asked.hold_out if validation is None and len(rates) > 1 else None,
        steps=values["steps"],
        batch_size=values["batch_size"],
        crop=values["crop"],
        options={name: asked.training[name] for name in OF_I3D_TRAIN if name in asked.typed} | _tested(asked),
        data=identity(samples),
        validation=identity(validation) if validation is not None else None,
        test=identity(test),
    )
    if initial is not None and cell.setting == "fixed":
        crop_to_show({asked.stream: initial}, cell.crop)  # which says where it was trained on another
        warn_of_others({asked.stream: initial}, samples.short_side)
        fix = partial(_fix, asked, cell, initial, samples, validation)
        return run_cell(asked.output, cell, _programs(asked), fix)
    return run_cell(asked.output, cell, _programs(asked))


def _check(asked: Asked) -> None:
    """Raise `ValueError` for options that contradict each other."""
    if asked.val_split == asked.test_split:
        raise ValueError(f"--val-split {asked.val_split} is --test-split, too: the rate would be chosen on its clips")
    if asked.train_split == asked.test_split:
        raise ValueError(f"--train-split {asked.train_split} is --test-split, too: the test would be of known clips")
    if asked.val_split == asked.train_split:
        raise ValueError(
            f"--val-split {asked.val_split} is --train-split, too: the rate would be chosen on known clips; without "
            "--val-split a part of them is held out"
        )
    if asked.setting == "fixed":
        typed = [name for name in NOT_OF_FIXED if name in asked.typed] + ["launcher"] * bool(asked.launcher)
        if typed:
            words = ", ".join(f"--{name.replace('_', '-')}" for name in typed)
            raise ValueError(f"--setting fixed trains a softmax over features alone, which knows no {words}")


def _tested(asked: Asked) -> dict[str, Any]:
    """How the network is tested, where that is not the default, by keyword."""
    tested: dict[str, Any] = {"crops": asked.crops} if asked.crops != 1 else {}
    return {**tested, "flips": True} if asked.flips else tested


def _initial(asked: Asked) -> Checkpoint | None:
    """The weights to begin with."""
    if asked.init is None:
        if asked.setting == "original":
            return None
        raise ValueError(f"--setting {asked.setting} begins with a network of other data: name it with --init")
    initial = load_checkpoint(asked.init, streams_of(asked.stream))
    if initial.architecture != asked.model:
        raise ValueError(
            f"{asked.init}: its architecture is {initial.architecture}, --model {asked.model} was asked for"
        )
    return initial


def _samples(asked: Asked, split: str | None, option: str) -> Samples:
    return trainable_samples(open_samples(asked.shards, split), streams_of(asked.stream), option)


def _values(asked: Asked) -> dict[str, Any]:
    """What trainings are done with: what was typed, what the recipe sets under it, i3d-train's defaults."""
    typed = {name: asked.training[name] for name in asked.typed}
    what = {"model": asked.model, "stream": asked.stream, "init": asked.init}
    return {**asked.training, **lay_recipe(RECIPE_OF[asked.setting], {**typed, **what}).options}


def _programs(asked: Asked) -> Programs:
    """How to train and test."""
    shards = ("--shards", asked.shards)
    what = ("--split", asked.train_split, "--model", asked.model, "--stream", asked.stream)
    recipe = ("--recipe", RECIPE_OF[asked.setting])
    init = ("--init", str(asked.init)) if asked.init is not None else ()
    tested = ["--crop", str(_values(asked)["crop"]), "--crops", str(asked.crops)]
    tested += ["--max-bad", str(asked.training["max_bad"])]
    tested += ["--flips"] if asked.flips else []
    tested += ["--workers", str(asked.training["workers"])] if asked.training["workers"] is not None else []
    if asked.training["precision"] != "auto":  # else in fp32, as i3d-train's own evaluations are
        tested += ["--precision", asked.training["precision"]]
    validation = ("--val-shards", asked.shards, "--val-split", asked.val_split) if asked.val_split is not None else ()
    return Programs(
        train=(*asked.launcher, "i3d-train", *shards, *what, *recipe, *init, *_words(asked)),
        evaluate=("i3d-eval", *shards, "--split", asked.test_split, *tested),
        validation=validation,
    )


def _words(asked: Asked) -> Sequence[str]:
    """What the user typed of i3d-train's options, as words."""
    words: list[str] = []
    for option in train_command.params:
        if option.name in asked.typed:
            value = asked.training[option.name]
            if isinstance(value, bool):
                words.append((option.opts if value else option.secondary_opts)[0])
            else:
                words += [option.opts[0], str(value)]
    return words


def _fix(
    asked: Asked, cell: Cell, initial: Checkpoint, samples: Samples, validation: Samples | None
) -> tuple[list[Candidate], list[Bad]]:
    """Train the last layer of the frozen network, and write the network.

    Returns:
        What each rate came to, and the clips that could not be read.
    """
    labels = samples.classes.labels if samples.classes is not None else ()
    used, clips, left_out = _labelled(asked, cell, initial, samples)
    rest, held_out = clips, None
    if validation is not None:
        _, held_out, more = _labelled(asked, cell, initial, validation)
        left_out += more
    elif cell.hold_out is not None:
        _, chosen = hold_out(used, cell.hold_out)
        is_held_out = np.isin(used.records["key"], chosen.records["key"])
        rest, held_out = clips.take(~is_held_out), clips.take(is_held_out)
    candidates = []
    if held_out is not None and len(cell.rates) > 1:
        for rate in cell.rates:
            found = train_softmax(rest, len(labels), _softmax_training(asked, cell, rate), held_out)
            candidates.append(Candidate(rate, *((None, None) if found is None else found.judged(held_out))))
    rate = best_of(candidates).rate if candidates else cell.rates[0]
    on_validation = held_out if validation is not None else None
    softmax = train_softmax(clips, len(labels), _softmax_training(asked, cell, rate), on_validation)
    if softmax is None:
        raise RunError(f"the classifier diverged with the learning rate {rate:g}: give lower --rates")
    network = with_softmax(initial, softmax).network()
    save_run(asked.output / NETWORK, network, labels, crop=cell.crop, short_side=samples.short_side)
    return candidates, left_out


def _labelled(asked: Asked, cell: Cell, initial: Checkpoint, samples: Samples) -> tuple[Samples, Labelled, list[Bad]]:
    """Those of the clips that can be used, their features, and the others.

    Raises:
        TooManyBad: more of them than --max-bad cannot, or all.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    workers, maximum = decoding_processes(asked.training["workers"]), asked.training["max_bad"]
    folder = asked.features or asked.output / "features"
    click.echo(f"features of {len(samples)} clips, kept in {folder}")
    rows: list[np.ndarray] = []
    good: list[int] = []
    bad: list[Bad] = []
    with naming_dead_workers():
        found = features_of(samples, initial, cell.crop, folder, device, workers)
        for place, row in enumerate(shown(found, "features", len(samples))):
            if not isinstance(row, Bad):
                rows.append(row)
                good.append(place)
                continue
            bad.append(row)
            click.echo(f"left out: {printable(row.message)}", err=True)
            if len(bad) > maximum:
                raise TooManyBad(f"{len(bad)} clips cannot be used, more than --max-bad {maximum}: {row.message}")
    if not good:
        raise TooManyBad(f"none of the {len(samples)} clips can be used")
    used = samples.take(good)
    classes = used.records["class_index"].astype(np.int64)
    return used, Labelled(torch.from_numpy(np.stack(rows)), torch.from_numpy(classes)), bad


def _softmax_training(asked: Asked, cell: Cell, rate: float) -> Training:
    """How the classifier is trained with a rate."""
    values = _values(asked)
    length = schedule_steps(values["schedule"], cell.steps)
    return Training(
        steps=cell.steps,
        batch_size=cell.batch_size,
        schedule=Schedule(values["schedule"], rate, values["warm_up_steps"], length),
        patience=values["patience"],
        evaluate_every=values["evaluate_every"],
        weight_decay=values["weight_decay"],
        seed=values["seed"],
    )
