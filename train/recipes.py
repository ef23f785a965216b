"""Recipes: trainings that were published, as options of i3d-train, each with where its value comes from."""

import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from model import Architecture
from train.schedule import RELEASED_BATCH, RELEASED_RATE, RELEASED_STEPS, ScheduleName, rate_of_batch

RecipeName = Literal["paper", "released-rgb", "released-flow", "original", "finetune"]
RECIPES: tuple[str, ...] = get_args(RecipeName)

REPLICA_CLIPS = 6  # a step, of each of the 64 replicas that trained the released networks
LINE = 110  # characters of a note
PAPER_GPUS, PAPER_3D_GPUS, BENCHMARK_GPUS = 32, 64, 16  # benchmarks: UCF-101 and HMDB-51
C3D_CLIPS = 15  # a step, of each GPU
_RELEASED = "kinetics-i3d README"
_CODE = "kinetics-i3d code"


class Setting(NamedTuple):
    """One line of a recipe: an option of i3d-train, or what has no option; its value; where the value comes from."""

    name: str  # as keyword: "batch_size" is --batch-size
    value: Any
    source: str
    yours: Any = None  # what the user typed instead


@dataclass(frozen=True)
class Laid:
    """A recipe under a user's options.

    Attributes:
        options: what to train with instead of i3d-train's own defaults, by keyword; nothing that the user typed.
        settings: what the recipe says of each option, those the user overrode included.
        fixed: what i3d-train does anyway, and the recipe's source says, too.
        notes: what differs from the source on this machine, or with these options, in sentences.
    """

    options: dict[str, Any]
    settings: tuple[Setting, ...]
    fixed: tuple[Setting, ...]
    notes: tuple[str, ...]


def lay_recipe(name: RecipeName, typed: Mapping[str, Any], devices: int = 1) -> Laid:
    """Lay a recipe under the options that a user typed: theirs win.

    A batch of another size keeps the number of clips that the recipe's training sees, and its rate for each clip: steps
    and learning rate follow. Epochs instead of steps are theirs, too.

    Args:
        name: which recipe.
        typed: i3d-train's options by keyword; only what the user typed, without defaults. `stream` must be there.
        devices: processes that train together (torchrun's WORLD_SIZE).

    Raises:
        ValueError: no such recipe, one of the other stream, or one that wants initial weights without any.
    """
    if name not in RECIPES:
        raise ValueError(f"--recipe {name!r} is none of {', '.join(RECIPES)}")
    model: Architecture = typed.get("model", "i3d")
    if name.startswith("released-") and (model != "i3d" or name != f"released-{typed['stream']}"):
        other = f": released-{typed['stream']} is" if model == "i3d" and typed["stream"] != "both" else ""
        raise ValueError(f"--recipe {name} is not for --model {model} --stream {typed['stream']}{other}")
    if name == "finetune" and typed.get("init") is None:
        raise ValueError("--recipe finetune begins with a network that was trained on Kinetics: name it with --init")
    theirs = {option: value for option, value in typed.items() if value is not None}
    batch_size = int(theirs.get("batch_size", _batch(name, model).value))
    settings = [
        setting._replace(yours=theirs.get(setting.name)) for setting in _settings(name, model, batch_size, devices)
    ]
    options = {setting.name: setting.value for setting in settings if setting.yours is None}
    if "epochs" in theirs:
        options.pop("steps", None)
        settings = [s._replace(yours=f"{theirs['epochs']:g} epochs") if s.name == "steps" else s for s in settings]
    notes = _notes(name, {**options, **theirs}, batch_size, devices)
    return Laid(options, tuple(settings), _FIXED, notes)


def describe(name: RecipeName, laid: Laid) -> str:
    """What a recipe sets, for a terminal: option, value, where it comes from; notes below."""
    rows = [("", "value", "from")]
    for setting in laid.settings:
        option = "--" + setting.name.replace("_", "-")
        value = _number(setting.value)
        if setting.yours is not None:
            rows.append((option, _number(setting.yours), f"you; the recipe: {value} ({setting.source})"))
        else:
            rows.append((option, value, setting.source))
    rows += [(setting.name, _number(setting.value), setting.source) for setting in laid.fixed]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{option:<{widths[0]}}  {value:<{widths[1]}}  {source}" for option, value, source in rows]
    notes = [line for note in laid.notes for line in textwrap.wrap(note, LINE)]
    return "\n".join([f"recipe {name}", *lines, *notes])


def _batch(name: RecipeName, model: Architecture) -> Setting:
    """Clips a step, as the recipe's source says."""
    if not name.startswith("released-"):
        of_paper = PAPER_3D_GPUS if model in ("c3d", "i3d") else PAPER_GPUS
        gpus = of_paper if name == "paper" else BENCHMARK_GPUS
        clips = _pass_clips(model)
        of_clips = "paper §2.2" if model == "c3d" else f"{_RELEASED}; the paper says none"
        return Setting("batch_size", gpus * clips, f"{gpus} GPUs (paper §2.5) × {clips} clips ({of_clips})")
    return Setting("batch_size", RELEASED_BATCH, f"{_RELEASED}: 64 replicas × {REPLICA_CLIPS} clips")


def _pass_clips(model: Architecture) -> int:
    return C3D_CLIPS if model == "c3d" else REPLICA_CLIPS


def _settings(name: RecipeName, model: Architecture, batch_size: int, devices: int) -> list[Setting]:
    """All that a recipe sets, for batches of `batch_size` clips on so many devices."""
    batch = _batch(name, model)
    schedule: ScheduleName = "released" if name.startswith("released-") else "plateau"
    steps, length = {
        "paper": (110_000, "paper §2.5: 110k steps"),
        "original": (5_000, "paper §2.5: up to 5k steps"),
        "finetune": (5_000, "paper §2.5: up to 5k steps"),
        "released-rgb": (RELEASED_STEPS["rgb"], f"{_RELEASED}: 115k steps"),
        "released-flow": (RELEASED_STEPS["flow"], f"{_RELEASED}: 155k steps"),
    }[name]
    if batch_size != batch.value:
        steps = math.ceil(steps * batch.value / batch_size)
        length += f" of {batch.value} clips, as many clips in all"
    rate, origin = RELEASED_RATE, f"{_RELEASED}: 0.1 for {RELEASED_BATCH} clips, in proportion"
    if name in ("paper", "original"):
        origin += "; the paper tuned it and names none"
    if name == "finetune":
        rate, origin = RELEASED_RATE / 10, f"ours: a tenth of the released rate for each clip ({_RELEASED})"
    decay = {
        "plateau": ("plateau", "paper §2.5: ÷10 when the validation loss saturates"),
        "released": ("released", f"{_RELEASED}: {_RELEASED_WORDS.get(name)}; scaled"),
    }[schedule]
    named = "" if schedule == "released" else "; the paper names none"
    settings = [
        batch,
        Setting(
            "accumulate",
            passes(batch_size, devices, _pass_clips(model)),
            f"passes a step; one has at most {_pass_clips(model)} clips",
        ),
        Setting("steps", steps, length),
        Setting("schedule", *decay),
        Setting("lr", rate_of_batch(batch_size, rate), origin),
        Setting("warm_up_steps", 0, "neither the paper nor the README has one"),
        Setting("weight_decay", 1e-7, _RELEASED + named),
        Setting("dropout", 0.5, _RELEASED + named),
        Setting("frames", 64, "paper §2.4, Table 1"),
        Setting("crop", 224, "paper §2.5: random, of a short side of 256"),
        Setting("flip", True, "paper §2.5: left and right, of each clip as a whole"),
        Setting("sync_bn", False, f"{_RELEASED}: BatchNorm with a minibatch of {REPLICA_CLIPS}"),
    ]
    if model != "i3d":
        settings = [setting for setting in settings if setting.name != "frames"]
    if schedule == "plateau":
        settings.insert(4, Setting("patience", 2, "ours: the paper does not say when a loss has saturated"))
    return settings


_RELEASED_WORDS = {
    "released-rgb": "÷10 at 97k and 108k",
    "released-flow": "÷10 at 97k and 104.5k, back up at 115k, ÷10 at 140k and 150k",
}

_FIXED = (
    Setting("momentum", 0.9, f"paper §2.5, {_RELEASED}"),
    Setting("batch norm", "eps 0.001", f"{_CODE}; no scale, averages keep 0.999 a step; measured anew before a test"),
    Setting("window", "random start", "paper §2.5; a clip that is too short starts over"),
    Setting("evaluation", "whole clips", "paper §2.5: centre crop, averaged over time"),
)


def passes(batch_size: int, devices: int, pass_clips: int = REPLICA_CLIPS) -> int:
    """In how many passes each of the devices takes its part of a batch, at most `pass_clips` clips in each.

    A few more than needed, where that makes all passes of one size.
    """
    fewest = math.ceil(batch_size / (devices * pass_clips))
    even = (n for n in range(fewest, 2 * fewest) if batch_size % (n * devices) == 0)
    return next(even, fewest)


def _notes(name: RecipeName, options: Mapping[str, Any], batch_size: int, devices: int) -> tuple[str, ...]:
    """What differs from the source of the recipe here."""
    machines = "1 device" if devices == 1 else f"{devices} devices"
    count = int(options["accumulate"])
    clips = math.ceil(batch_size / (devices * count))
    together = clips * devices if options["sync_bn"] else clips
    notes = [
        f"{batch_size} clips a step on {machines}: {count} {'pass' if count == 1 else 'passes'} of {clips} "
        f"{'clip' if clips == 1 else 'clips'} each, whose gradients are added before one update. Batch normalisation "
        f"sees {together} at a time, a replica of the released training {REPLICA_CLIPS}."
        f"{' Fewer passes (--accumulate) are faster where memory allows.' if count > 1 else ''}"
    ]
    untested = options.get("val_shards") is None and options.get("hold_out") is None
    if not name.startswith("released-") and options.get("schedule") == "plateau" and untested:
        notes.append(
            "Without --val-shards the schedule looks at the training loss; the paper's looks at the validation loss."
        )
    if name not in ("original", "finetune") and options.get("init") is None:
        notes.append(
            "Without --init it begins with random weights. On Kinetics' test set released networks that did so have a "
            "top-1 of 68.4 % (RGB) and 61.5 % (flow), those begun with ImageNet's 71.1 % and 63.4 %."
        )
    return tuple(notes)


def _number(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
