"""What the steps of a training change: made, saved, and taken up again."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from manifests.classes import ClassList
from model import (
    Checkpoint,
    CheckpointError,
    Network,
    Stream,
    build,
    channels_last,
    head_names,
    load_training,
    recompute_activations,
    save_run,
    synchronise_batch_norm,
)
from train.evaluate import classes_of
from train.plan import Plan, Share
from train.ranks import Ranks
from train.run import Configuration, Session, checkpoint_path, remove_old_checkpoints
from train.samplers import RandomWindow, window_of
from train.schedule import Plateau
from train.stream import Samples, streams_of

REMEDY = "Checkpoints are as they were; begin again with a lower --lr in another --output, perhaps with --init"


class NonFiniteLossError(Exception):
    """The loss or a gradient is no number."""


@dataclass(frozen=True)
class Task:
    """What a run does, and this process's part in it."""

    folder: Path
    configuration: Configuration
    session: Session
    samples: Samples
    validation: Samples | None
    ranks: Ranks

    @property
    def classes(self) -> ClassList:
        """The classes of the samples."""
        assert self.samples.classes is not None  # `trainable_samples` has seen to it
        return self.samples.classes

    @property
    def streams(self) -> tuple[Stream, ...]:
        """What the network sees."""
        return streams_of(self.configuration.stream)

    @property
    def share(self) -> Share:
        """This process's part of a global batch."""
        return Share(self.ranks.rank, self.ranks.count, self.session.accumulate)

    @cached_property
    def plan(self) -> Plan:
        """What is seen when."""
        configuration = self.configuration
        return Plan(
            clip_frames=np.minimum.reduce([self.samples.records[f"{stream}_frames"] for stream in self.streams]),
            shard_of=self.samples.shard_of,
            sampler=RandomWindow(window_of(configuration.model, self.streams, configuration.frames)),
            batch_size=configuration.batch_size,
            seed=configuration.seed,
            flip=configuration.flip,
        )


@dataclass
class State:
    """What a checkpoint holds: all that the steps so far have changed."""

    network: Network
    optimizer: torch.optim.SGD
    plateau: Plateau
    step: int = 0
    loss_sum: float = 0.0  # of the mean training losses since the last evaluation,
    losses: int = 0  # and their number
    best_loss: float = math.inf  # of all evaluations
    tested: int = 0  # the step after which the last evaluation came

    def is_due(self, steps: int, evaluate_every: int) -> bool:
        """Whether an evaluation is still to come before the next step: at its turn, and after the last of `steps`."""
        return self.tested < self.step and (self.step == steps or self.step % evaluate_every == 0)

    def require_finite(self) -> None:
        """Raise `NonFiniteLossError` for weights or statistics that are no numbers."""
        broken = [name for name, tensor in self.network.state_dict().items() if not tensor.isfinite().all()]
        if broken:
            raise NonFiniteLossError(
                f"{len(broken)} weights or statistics are not finite after step {self.step}. {REMEDY}"
            )


def new_state(task: Task, initial: Checkpoint | None) -> State:
    """A network at its beginning, or with the weights of `initial`, and a new head where its classes are others."""
    configuration = task.configuration
    torch.manual_seed(configuration.seed)
    network = build(
        configuration.model,
        task.streams,
        len(task.classes.labels),
        dropout=configuration.dropout,
        temporal_padding=configuration.temporal_padding,
    )
    if initial is not None:
        kept = keeps_head(initial, task.classes)
        fresh = [] if kept else head_names(network.architecture, network.streams)
        network.load_state_dict(initial.state_dict | {name: network.state_dict()[name] for name in fresh})
    network = channels_last(network.to(task.ranks.device)).train()
    network.checks_values = False
    if task.session.checkpoint_activations:
        recompute_activations(network)
    if configuration.sync_bn and task.ranks.count > 1:
        synchronise_batch_norm(network)
    optimizer = torch.optim.SGD(
        network.parameters(),
        configuration.schedule.base_rate,
        configuration.momentum,
        weight_decay=configuration.weight_decay,
    )
    return State(network, optimizer, Plateau(configuration.patience))


def keeps_head(initial: Checkpoint, classes: ClassList) -> bool:
    """Whether a checkpoint's classes are those of the data."""
    named = classes_of(initial)
    return named is not None and named.labels == classes.labels


def save(state: State, task: Task) -> None:
    """Write a checkpoint to resume from, and remove old ones.

    Raises:
        NonFiniteLossError: weights that are not finite; nothing is written.
        OSError: it cannot be written; earlier ones are as they were.
    """
    state.require_finite()
    training = {
        "step": state.step,
        "loss_sum": state.loss_sum,
        "losses": state.losses,
        "best_loss": state.best_loss,
        "tested": state.tested,
        "optimizer": state.optimizer.state_dict(),
        "plateau": state.plateau.state_dict(),
    }
    path = checkpoint_path(task.folder, state.step)
    save_network(path, state.network, task, training)
    remove_old_checkpoints(task.folder)


def save_network(path: Path, network: Network, task: Task, training: Mapping[str, object] | None = None) -> None:
    """Write a run's file, which says what the network was trained on.

    Raises:
        OSError: it cannot be written.
    """
    save_run(
        path,
        network,
        task.classes.labels,
        training,
        crop=task.configuration.crop,
        short_side=task.samples.short_side,
        hold_out=task.configuration.hold_out,
    )


def restore(state: State, path: Path) -> None:
    """Set a new state to what a checkpoint holds.

    Raises:
        CheckpointError: a damaged file, or one that is no checkpoint of a training.
    """
    checkpoint, training = load_training(path)
    try:
        state.network.load_state_dict(checkpoint.state_dict)
        _restore_training(state, training)
        if path.name != checkpoint_path(path.parent, state.step).name:
            raise ValueError(f"the state after {state.step} steps")
    except (KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise CheckpointError(f"{path}: not the state of this training: {error!r}") from error


def _restore_training(state: State, training: Mapping[str, Any]) -> None:
    state.optimizer.load_state_dict(training["optimizer"])
    for parameter, buffers in state.optimizer.state.items():
        if buffers["momentum_buffer"].shape != parameter.shape:
            raise ValueError(f"a momentum of shape {list(buffers['momentum_buffer'].shape)}")
    state.plateau.load_state_dict(training["plateau"])
    state.step, state.losses = int(training["step"]), int(training["losses"])
    state.loss_sum, state.best_loss = float(training["loss_sum"]), float(training["best_loss"])
    state.tested = int(training["tested"])
