"""The training loop."""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import ReduceLROnPlateau

from manifests.classes import ClassList, published_of_size
from model import I3D, STREAM_CHANNELS, Checkpoint, CheckpointError, load_training, save_run
from train.batch_norm import BATCHES, recompute_statistics
from train.decode import network_input
from train.evaluate import TOP, Streams, evaluate, top_share
from train.loader import Batch, training_batches
from train.log import Log
from train.plan import Plan
from train.run import Configuration, Session, checkpoint_path, remove_old_checkpoints
from train.stream import Samples

_REMEDY = "Checkpoints are as they were; begin again with a lower --lr in another --output, perhaps with --init"


class NonFiniteLossError(Exception):
    """The loss or a gradient is no number."""


@dataclass
class State:
    """What a checkpoint holds: all that the steps so far have changed."""

    network: I3D
    optimizer: torch.optim.SGD
    schedule: ReduceLROnPlateau
    step: int = 0
    loss_sum: float = 0.0  # of the training losses since the last evaluation,
    losses: int = 0  # and their number
    best_loss: float = math.inf  # of all evaluations
    tested: int = 0  # the step after which the last evaluation came

    def is_due(self, steps: int, evaluate_every: int) -> bool:
        """Whether an evaluation is still to come before the next step: at its turn, and after the last of `steps`."""
        return self.tested < self.step and (self.step == steps or self.step % evaluate_every == 0)


def train(
    folder: Path,
    configuration: Configuration,
    session: Session,
    samples: Samples,
    validation: Samples | None,
    initial: Checkpoint | None,
    resume_from: Path | None,
) -> State:
    """Train until `session.steps` steps are done; SIGINT or SIGTERM end it early, with a checkpoint.

    Raises:
        FormatError: a sample that cannot be read or decoded, named.
        NonFiniteLossError: names step and samples; nothing is changed by that step, and earlier checkpoints are whole.
    """
    device, stream = torch.device(session.device), configuration.stream
    plan = plan_of(configuration, samples)
    state = new_state(configuration, samples, initial, device)
    if resume_from is not None:
        restore(state, resume_from)
    steps = range(state.step, session.steps)
    batches = training_batches(samples, stream, plan, steps, configuration.crop, session.workers, device.type == "cuda")
    with Log(folder, state.step, state.tested, session.steps, plan.batch_size) as log, stop_on_signals() as stop:
        while not stop:
            if state.is_due(session.steps, configuration.evaluate_every):  # perhaps from before a stop
                log.evaluation(state.step, test(state, folder, configuration, session, samples, validation, log))
                save(state, folder, configuration, samples)
            if stop or state.step >= session.steps:
                break
            started = time.monotonic()
            batch = next(batches)
            waited = time.monotonic() - started
            values = train_step(state, batch, configuration, device)
            if not math.isfinite(values["loss"] + values["gradient_norm"]):
                raise _non_finite(values, plan, samples, state.step)
            state.step += 1
            times = {"seconds": time.monotonic() - started, "waiting_seconds": waited}
            log.step(state.step, {"epoch": plan.epoch(state.step), **values, **times})
            due = state.is_due(session.steps, configuration.evaluate_every)
            if due or stop or state.step % session.checkpoint_every == 0:
                save(state, folder, configuration, samples)
        if steps.start >= session.steps:
            log.say(f"nothing to do: {steps.start} steps are done, {session.steps} were asked for")
        if stop:
            log.say(f"stopped after step {state.step}; --resume auto goes on from there")
    return state


def train_step(state: State, batch: Batch, configuration: Configuration, device: torch.device) -> dict[str, float]:
    """One update of the weights, left out where the loss or a gradient is not finite; gives loss, rate, norm."""
    seeds = np.random.SeedSequence([configuration.seed, state.step])
    torch.manual_seed(int(seeds.generate_state(1)[0]))  # so that dropout, too, is a function of seed and step
    labels = batch.labels.to(device, non_blocking=True)
    x = network_input(batch.pixels.to(device, non_blocking=True), configuration.stream)  # [B, C, T, H, W]
    with torch.autocast(device.type, torch.bfloat16, enabled=configuration.precision == "bf16"):
        logits = state.network(x)  # [B, classes]
        loss = F.cross_entropy(logits, labels)  # autocast takes it in fp32
    state.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.get_total_norm([p.grad for p in state.network.parameters() if p.grad is not None])
    values = {"loss": loss.item(), "lr": state.optimizer.param_groups[0]["lr"], "gradient_norm": norm.item()}
    if math.isfinite(values["loss"] + values["gradient_norm"]):
        state.optimizer.step()
        state.loss_sum += values["loss"]
        state.losses += 1
    return values


def test(
    state: State,
    folder: Path,
    configuration: Configuration,
    session: Session,
    samples: Samples,
    validation: Samples | None,
    log: Log,
) -> dict[str, float]:
    """Test on whole clips, let the schedule see the loss, and write `model.pt` and `best.pt`; gives what was found.

    Without validation clips the schedule sees the mean training loss since the last time.
    """
    started = time.monotonic()
    device, stream, classes = torch.device(session.device), configuration.stream, samples.classes
    assert classes is not None  # `trainable_samples` has seen to it
    seen = range(max(0, state.step - BATCHES), state.step)
    again = training_batches(
        samples, stream, plan_of(configuration, samples), seen, configuration.crop, session.workers
    )
    recompute_statistics(state.network, (network_input(batch.pixels.to(device), stream) for batch in again))
    values = {"mean_loss": state.loss_sum / state.losses, "lr": state.optimizer.param_groups[0]["lr"]}
    loss = values["mean_loss"]
    if validation is not None:
        streams = Streams({stream: state.network}, {}, classes, device)
        found = evaluate(validation, streams, configuration.crop, workers=session.workers)
        results = list(log.evaluating(found, len(validation)))
        logits, labels = [result.joint for result in results], [result.class_index for result in results]
        loss = F.cross_entropy(torch.stack(logits), torch.tensor(labels)).item()
        tops = {f"val_top{k}": top_share(logits, labels, k) for k in (1, TOP)}
        values |= {"val_loss": loss, **{name: share for name, share in tops.items() if share is not None}}
    _require_finite(state)
    if not math.isfinite(loss):
        raise NonFiniteLossError(f"the validation loss after step {state.step} is not finite. {_REMEDY}")
    state.network.train()
    if state.step % configuration.evaluate_every == 0:  # not at an end between: going on later changes nothing
        state.schedule.step(loss)
        state.loss_sum, state.losses = 0.0, 0
    state.tested = state.step
    save_run(folder / "model.pt", state.network, stream, classes.labels)
    if validation is not None and loss < state.best_loss:
        state.best_loss = loss
        save_run(folder / "best.pt", state.network, stream, classes.labels)
    return {**values, "seconds": time.monotonic() - started}


def plan_of(configuration: Configuration, samples: Samples) -> Plan:
    """The plan of a run on these samples."""
    frames = samples.records[f"{configuration.stream}_frames"]
    return Plan(frames, configuration.frames, configuration.batch_size, configuration.seed, configuration.flip)


def new_state(
    configuration: Configuration, samples: Samples, initial: Checkpoint | None, device: torch.device
) -> State:
    """A network at its beginning, or with the weights of `initial`, and a new head where its classes are others."""
    assert samples.classes is not None  # `trainable_samples` has seen to it
    labels = samples.classes.labels
    torch.manual_seed(configuration.seed)
    channels = STREAM_CHANNELS[configuration.stream]
    network = I3D(len(labels), channels, configuration.dropout, configuration.temporal_padding)
    if initial is not None:
        weights = initial.state_dict
        if not keeps_head(initial, samples.classes):
            weights = {**weights, **{f"Logits.{name}": tensor for name, tensor in network.Logits.state_dict().items()}}
        network.load_state_dict(weights)
    network = network.to(device).to(memory_format=torch.channels_last_3d).train()  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        network.parameters(),
        configuration.learning_rate,
        configuration.momentum,
        weight_decay=configuration.weight_decay,
    )
    schedule = ReduceLROnPlateau(
        optimizer,
        factor=configuration.learning_rate_factor,
        patience=configuration.patience - 1,  # torch waits for one more
        threshold=0.0,
    )
    return State(network, optimizer, schedule)


def keeps_head(initial: Checkpoint, classes: ClassList) -> bool:
    """Whether a checkpoint's classes are those of the data; the released ones, which name none, have Kinetics'."""
    published = published_of_size(initial.num_classes)
    return classes.labels == (initial.classes or (published and published.labels))


def save(state: State, folder: Path, configuration: Configuration, samples: Samples) -> None:
    """Write a checkpoint to resume from, and remove old ones.

    Raises:
        NonFiniteLossError: weights that are not finite; nothing is written.
    """
    _require_finite(state)
    assert samples.classes is not None  # `trainable_samples` has seen to it
    training = {
        "step": state.step,
        "loss_sum": state.loss_sum,
        "losses": state.losses,
        "best_loss": state.best_loss,
        "tested": state.tested,
        "optimizer": state.optimizer.state_dict(),
        "schedule": state.schedule.state_dict(),
    }
    path = checkpoint_path(folder, state.step)
    save_run(path, state.network, configuration.stream, samples.classes.labels, training)
    remove_old_checkpoints(folder)


def restore(state: State, path: Path) -> None:
    """Set a new state to what a checkpoint holds.

    Raises:
        CheckpointError: a damaged file, or one that is no checkpoint of a training.
    """
    checkpoint, training = load_training(path)
    try:
        state.network.load_state_dict(checkpoint.state_dict)
        state.optimizer.load_state_dict(training["optimizer"])
        for parameter, buffers in state.optimizer.state.items():
            if buffers["momentum_buffer"].shape != parameter.shape:
                raise ValueError(f"a momentum of shape {list(buffers['momentum_buffer'].shape)}")
        state.schedule.load_state_dict({**training["schedule"], "best": float(training["schedule"]["best"])})
        state.step, state.losses = int(training["step"]), int(training["losses"])
        state.loss_sum, state.best_loss = float(training["loss_sum"]), float(training["best_loss"])
        state.tested = int(training["tested"])
        if path.name != checkpoint_path(path.parent, state.step).name:
            raise ValueError(f"the state after {state.step} steps")
    except (KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise CheckpointError(f"{path}: not the state of this training: {error!r}") from error


@contextmanager
def stop_on_signals() -> Iterator[list[int]]:
    """A list that SIGINT or SIGTERM makes non-empty; the second SIGINT interrupts as usual."""
    received: list[int] = []

    def note(number: int, _: object) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _require_finite(state: State) -> None:
    broken = [name for name, tensor in state.network.state_dict().items() if not tensor.isfinite().all()]
    if broken:
        raise NonFiniteLossError(
            f"{len(broken)} weights or statistics are not finite after step {state.step}. " + _REMEDY
        )


def _non_finite(values: dict[str, float], plan: Plan, samples: Samples, step: int) -> NonFiniteLossError:
    keys = ", ".join(samples[view.sample].key for view in plan.batch(step))
    what = "loss" if not math.isfinite(values["loss"]) else "gradient"
    return NonFiniteLossError(
        f"the {what} of step {step + 1} is not finite; samples: {keys}; learning rate {values['lr']:g}. {_REMEDY}"
    )
