"""The training loop."""

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model import Checkpoint
from train.decode import network_inputs
from train.loader import Batch, training_batches
from train.log import Log
from train.prefetch import prefetching
from train.quarantine import Quarantine
from train.ranks import Ranks
from train.run import Configuration
from train.schedule import learning_rate
from train.signals import noted_signals
from train.state import REMEDY, NonFiniteLossError, State, Task, new_state, restore, save
from train.validation import Stopped, validate


def train(task: Task, initial: Checkpoint | None, resume_from: Path | None) -> State:
    """Train until `task.session.steps` steps are done; SIGINT or SIGTERM end it early, with a checkpoint.

    All ranks take the same steps: what one of them has seen, a signal, data that cannot be read, a loss that is no
    number, they agree on before and after each.

    Raises:
        OSError: samples that cannot be reached, a worker process that died, a disk that is full.
        TooManyBad: more samples than `session.max_bad` are bad, or all.
        NonFiniteLossError: names step and samples; nothing is changed by that step, and earlier checkpoints are whole.
    """
    configuration, session, ranks = task.configuration, task.session, task.ranks
    state = new_state(task, initial)
    if resume_from is not None:
        restore(state, resume_from)
    quarantine = Quarantine(task.folder, session.max_bad, task.samples, ranks)
    steps = range(state.step, session.steps)
    pinned = ranks.device.type == "cuda"
    batches = training_batches(
        task.samples, task.streams, task.plan, steps, configuration.crop, task.share, session.workers, pinned
    )
    network = _parallel(state.network, session.compile, ranks)
    done = (state.step, state.tested, session.steps, configuration.batch_size)
    with (
        Log(task.folder, *done) if ranks.first else nullcontext() as log,
        noted_signals() as signals,
        prefetching(task.samples, task.plan) as prefetch,
    ):
        stopped = False
        while not stopped:
            if state.is_due(session.steps, configuration.evaluate_every):  # perhaps from before a stop
                try:
                    found = validate(state, task, quarantine, signals, log)
                except Stopped:
                    stopped = True
                    break
                if log:
                    log.evaluation(state.step, found)
                    save(state, task)
            if state.step >= session.steps:
                break
            if prefetch:
                prefetch.at(state.step)
            stopped = not _step(state, task, network, signals.until(batches), quarantine, log)
        if log and steps.start >= session.steps:
            log.say(f"nothing to do: {steps.start} steps are done, {session.steps} were asked for")
        if log and stopped:
            save(state, task)
            log.say(f"stopped after step {state.step}; --resume auto goes on from there")
    return state


def _step(
    state: State,
    task: Task,
    network: nn.Module,
    batches: Iterator[Batch],
    quarantine: Quarantine,
    log: Log | None,
) -> bool:
    """Load and take a step, tell of it, save where that is due; False, and nothing done, where a rank has no batch."""
    ranks, started = task.ranks, time.monotonic()
    parts = ranks.all_or_none(lambda: list(islice(batches, task.share.parts)))
    if ranks.sum([len(parts) < task.share.parts])[0]:
        return False
    waited = time.monotonic() - started
    values = train_step(state, network, parts, task.configuration, ranks)
    if not math.isfinite(values["loss"] + values["gradient_norm"]):
        raise _non_finite(values, task, state.step)
    if values["bad"]:
        quarantine.add(bad for part in parts for bad in part.bad)
    state.step += 1
    if log:
        told = {name: values[name] for name in ("loss", "lr", "gradient_norm")}
        if values["bad"] == task.configuration.batch_size:
            del told["loss"]  # of no sample
        times = {"seconds": time.monotonic() - started, "waiting_seconds": waited}
        log.step(state.step, {"epoch": task.plan.epoch(state.step), **told, **times, "bad": len(quarantine)})
        due = state.is_due(task.session.steps, task.configuration.evaluate_every)
        if due or state.step % task.session.checkpoint_every == 0:
            save(state, task)
    return True


def train_step(
    state: State,
    network: nn.Module,
    parts: Sequence[Batch],
    configuration: Configuration,
    ranks: Ranks,
) -> dict[str, float]:
    """One update of the weights, left out where the loss or a gradient is not finite.

    The gradient is the sum over the batch's good samples, divided by the number of all: a bad one counts as zero.

    Args:
        state: whose weights.
        network: its network, wrapped for this machine.
        parts: the batches of this rank.
        configuration: of the run.
        ranks: that take the step together.

    Returns:
        `loss`, the mean over the good samples of all ranks, `lr`, `gradient_norm`, `bad` samples.
    """
    rate = learning_rate(configuration.schedule, state.step, state.plateau.drops)
    state.optimizer.param_groups[0]["lr"] = rate
    state.optimizer.zero_grad()
    loss_sum = torch.zeros((), device=ranks.device)
    for number, batch in enumerate(parts, start=1):
        # So that dropout, too, is a function of seed and step, whichever rank takes this slice of the batch.
        seeds = np.random.SeedSequence([configuration.seed, state.step, ranks.rank * len(parts) + number - 1])
        torch.manual_seed(int(seeds.generate_state(1)[0]))
        with network.no_sync() if number < len(parts) and ranks.count > 1 else nullcontext():  # type: ignore[operator]
            x = network_inputs(batch.pixels, state.network, ranks.device)
            loss = _weighted_loss(network, x, batch, configuration)
            share = loss * (ranks.count / configuration.batch_size)  # DDP takes the mean over ranks
            share.backward()  # type: ignore[no-untyped-call]
        loss_sum += loss.detach()
    gradients = [p.grad for p in state.network.parameters() if p.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(gradients))
    bad_here = sum(len(part.bad) for part in parts)
    total, bad = ranks.sum([float(loss_sum), bad_here])
    good = configuration.batch_size - bad
    values = {"loss": total / max(good, 1), "lr": rate, "gradient_norm": norm, "bad": bad}
    if good and math.isfinite(values["loss"] + norm):
        if configuration.clip_gradient is not None:
            torch.nn.utils.clip_grads_with_norm_(
                state.network.parameters(), configuration.clip_gradient, torch.tensor(norm, device=ranks.device)
            )
        state.optimizer.step()
        state.loss_sum += values["loss"]
        state.losses += 1
    return values


def _weighted_loss(network: nn.Module, x: Sequence[Tensor], batch: Batch, configuration: Configuration) -> Tensor:
    """Sum of the losses of a batch's good samples; of one, the mean over the network's time steps if it has any."""
    device = x[0].device
    labels, weights = (tensor.to(device, non_blocking=True) for tensor in (batch.labels, batch.weights))
    with torch.autocast(device.type, torch.bfloat16, enabled=configuration.precision == "bf16"):
        logits = network(*x)  # [B, classes] or [B, classes, steps]
        of_steps = labels if logits.ndim == 2 else labels[:, None].expand(-1, logits.shape[2])
        losses = F.cross_entropy(logits, of_steps, reduction="none")  # autocast takes it in fp32
    return (losses.reshape(len(labels), -1).mean(1) * weights).sum()


def _parallel(network: nn.Module, compiled: bool, ranks: Ranks) -> nn.Module:
    """The network as the steps of this machine call it; it shares its weights."""
    if ranks.count > 1:
        devices = [ranks.device] if ranks.device.type == "cuda" else None
        network = DistributedDataParallel(network, device_ids=devices)
        # About an axis of length 1, whose stride means nothing.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    # A compiler's own random numbers would drop other features than the step's seed does uncompiled.
    return torch.compile(network, options={"fallback_random": True}) if compiled else network  # type: ignore[return-value]


def _non_finite(values: dict[str, float], task: Task, step: int) -> NonFiniteLossError:
    keys = ", ".join(task.samples[view.sample].key for view in task.plan.batch(step))
    what = "loss" if not math.isfinite(values["loss"]) else "gradient"
    return NonFiniteLossError(
        f"the {what} of step {step + 1} is not finite; samples: {keys}; learning rate {values['lr']:g}. {REMEDY}"
    )
