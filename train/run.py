"""The folder of a training run: its configuration, its checkpoints, and whether a new start may go on with them.

RUN/config.json            all that is needed to repeat the run
RUN/metrics.jsonl          one line a step and one an evaluation
RUN/tensorboard/           the same for TensorBoard
RUN/model.pt, best.pt      the network at the last evaluation, and at that of the lowest validation loss
RUN/checkpoints/           the newest states of the training, to resume from
RUN/quarantine.jsonl       samples that cannot be used, where there are any
RUN/diverged.txt           where and how the loss ceased to be a number, if it did
"""

import hashlib
import json
import platform
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from manifests.files import canonical_json, remove_partial_files, write_file
from manifests.lease import LEASE
from manifests.sample import FormatError, differences
from model import Architecture, TemporalPadding
from train.quarantine import FILE as QUARANTINE
from train.schedule import Schedule
from train.stream import Inputs, Samples, at_snapshot

Precision = Literal["fp32", "bf16"]

CHECKPOINTS_KEPT = 2
DIVERGED = "diverged.txt"
_CONFIG = "config.json"
_CHECKPOINT = re.compile(r"[0-9]{9}\.pt")


class RunError(Exception):
    """A run's folder that cannot be used as asked."""


@dataclass(frozen=True)
class Configuration:
    """All that decides what a run computes; to resume a run, it must be the same."""

    model: Architecture
    stream: Inputs
    frames: int  # that a window reaches over
    crop: int
    batch_size: int
    schedule: Schedule  # of the learning rate
    evaluate_every: int  # steps; a plateau's schedule looks at each evaluation
    patience: int  # evaluations without a better loss before the learning rate falls
    flip: bool
    seed: int
    precision: Precision
    data: dict[str, Any]  # `identity` of the samples
    validation: dict[str, Any] | None
    hold_out: float | None  # share of the split that the validation clips are
    initial: dict[str, str] | None  # SHA-256 of the checkpoint's files
    momentum: float = 0.9
    weight_decay: float = 1e-7  # of the released training; the paper names none
    clip_gradient: float | None = None  # largest norm of a step's gradient
    sync_bn: bool = False
    dropout: float = 0.5
    temporal_padding: TemporalPadding = "zero"


@dataclass(frozen=True)
class Session:
    """What may change from one start of a run to the next: how far, how fast, from where."""

    steps: int
    checkpoint_every: int
    workers: int  # processes that decode, of each rank
    ranks: int
    accumulate: int  # parts of a rank's batch, whose gradients are summed
    compile: bool
    checkpoint_activations: bool
    max_bad: int  # samples
    shards: str
    validation_shards: str | None
    init: str | None
    device: str
    command: list[str]


def identity(samples: Samples) -> dict[str, Any]:
    """What names a set of samples: the same keys, frames and classes give the same."""
    digest = hashlib.sha256()
    records = samples.records
    for key in records["key"].tolist():
        digest.update(key + b"\n")  # not the field's bytes, whose width is that of the longest key of more samples
    for field in ("class_index", "rgb_frames", "flow_frames", "rgb_sha256", "flow_sha256"):
        digest.update(records[field].tobytes())
    classes = samples.classes
    return {
        "samples": len(samples),
        "sha256": digest.hexdigest(),
        "snapshot": samples.snapshot,
        "split": samples.splits[0],
        "classes": classes and {"name": classes.name, "sha256": classes.sha256},
    }


def open_run(folder: Path, configuration: Configuration, session: Session, resume: bool) -> Path | None:
    """Make a folder a run's and write its `config.json`. One whose run came to no network is begun anew.

    Args:
        folder: of the run; the caller holds its lease.
        configuration: what the run computes.
        session: how this start does it.
        resume: go on with what is there.

    Returns:
        The checkpoint to go on from, or None at the beginning.

    Raises:
        RunError: the folder holds a run and `resume` is not set, a run of another configuration, or other files.
        FormatError: its `config.json` is damaged, or something else's.
        OSError: it cannot be written.
    """
    wanted = json.loads(canonical_json(asdict(configuration)))
    file = folder / _CONFIG
    steps = checkpoint_steps(folder)
    if steps or (folder / "model.pt").exists():
        found = _read_configuration(file)
        if not resume:
            raise RunError(f"{folder}: holds a run already; go on with it (--resume auto) or choose another --output")
        changed = differences(found, wanted)
        if changed:
            raise RunError(f"{folder}: holds a run of another configuration: {', '.join(changed)}")
    elif file.exists():
        _read_configuration(file)  # else it is something else's
    elif any(path.name != LEASE for path in folder.iterdir()):
        raise RunError(f"{folder}: holds other files; choose an --output that is empty or not there yet")
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    remove_partial_files(folder)
    if not steps:
        (folder / QUARANTINE).unlink(missing_ok=True)  # perhaps of other samples
    (folder / DIVERGED).unlink(missing_ok=True)
    for unfinished in folder.glob("**/.*.unfinished"):
        unfinished.unlink()
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    content = {"configuration": wanted, "session": asdict(session), "versions": versions}
    write_file(file, canonical_json(content))
    return checkpoint_path(folder, steps[-1]) if steps else None


def pinned(folder: Path, shards: str, part: Literal["data", "validation"]) -> str:
    """What a user named, with the snapshot that the run in `folder` began with, where it is to go on with the same.

    So a dataset to which something is added every night does not change under a run.

    Args:
        folder: of the run.
        shards: the user's words.
        part: which of the run's samples they are.

    Raises:
        FormatError: the folder holds a run whose configuration is damaged.
    """
    if not checkpoint_steps(folder):
        return shards
    found = _read_configuration(folder / _CONFIG).get(part)
    snapshot = found.get("snapshot") if isinstance(found, dict) else None
    return at_snapshot(shards, snapshot) if isinstance(snapshot, str) else shards


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the state after `step` steps is kept; names sort as steps do."""
    return folder / "checkpoints" / f"{step:09d}.pt"


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps whose states are kept, in order; files of other names are not ours."""
    return sorted(int(path.stem) for path in (folder / "checkpoints").glob("*.pt") if _CHECKPOINT.fullmatch(path.name))


def remove_old_checkpoints(folder: Path) -> None:
    """Keep the newest few."""
    for step in checkpoint_steps(folder)[:-CHECKPOINTS_KEPT]:
        checkpoint_path(folder, step).unlink()


def _read_configuration(file: Path) -> dict[str, Any]:
    try:
        found = dict(json.loads(file.read_bytes())["configuration"])
        missing = [field.name for field in fields(Configuration) if field.name not in found]
        if missing:
            raise ValueError(f"{', '.join(missing)} missing")
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{file}: not the configuration of a run: {error!r}") from error
