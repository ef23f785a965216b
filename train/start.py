"""From a user's words to a training run: find the samples, decide what is left open, claim the folder, train."""

import math
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from manifests.files import write_file
from manifests.lease import lease
from manifests.sample import FormatError, differences
from model import Architecture, Checkpoint, Stream, load_checkpoint
from train.bench_data import LoaderSpeed, bench_data
from train.cache import Cache
from train.decode import C3D_SIDE
from train.hold_out import hold_out
from train.loader import decoding_processes, naming_dead_workers, training_batches
from train.loop import train
from train.plan import WINDOW_SHARDS
from train.prefetch import prefetching
from train.ranks import Ranks, joined, this_rank
from train.run import DIVERGED, Configuration, Precision, RunError, Session, identity, open_run, pinned
from train.samplers import window_of
from train.schedule import Schedule, ScheduleName, rate_of_batch, schedule_steps, steps_to_evaluation
from train.state import NonFiniteLossError, Task
from train.stream import Inputs, Samples, open_samples, streams_of, trainable_samples

MAXIMUM_STEPS = 10**9


@dataclass(frozen=True)
class Options:
    """The options of i3d-train, as typed or by default; None where the run decides."""

    shards: str
    split: str | None
    model: Architecture
    stream: Inputs
    output: Path | None
    val_shards: str | None
    val_split: str | None
    hold_out: float | None
    steps: int | None
    epochs: float | None
    batch_size: int
    accumulate: int
    frames: int | None
    crop: int
    schedule: ScheduleName
    lr: float | None
    warm_up_steps: int
    patience: int
    weight_decay: float
    dropout: float
    clip_gradient: float | None
    sync_bn: bool
    flip: bool
    init: Path | None
    resume: str
    evaluate_every: int | None
    checkpoint_every: int
    max_bad: int
    precision: str
    compile: bool
    checkpoint_activations: bool
    seed: int
    workers: int | None
    cache: Path | None
    cache_gigabytes: float
    bench_data: bool


def start(options: Options) -> None:
    """Train as the command's options say; under torchrun, together with the other ranks.

    Raises:
        ValueError: options that contradict each other.
        FormatError: data that cannot be trained on.
        CheckpointError: initial weights, or a state to resume from, that cannot be used.
        RunError: a folder that holds something else, or ranks that would not train the same.
        LeaseHeld: another process trains in that folder.
        NonFiniteLossError: the training diverged.
        TooManyBad: more samples cannot be used than `max_bad`.
        OSError: a file that cannot be read or written.
    """
    _check(options)
    ranks = this_rank()
    task, initial = _task(options, ranks)  # before ranks wait for each other: most of what is wrong is seen by all
    with joined(ranks), naming_dead_workers(), ExitStack() as held:
        if options.bench_data:
            print(_speed_of_loading(task))
            return

        _require_one_run(task.configuration, task.session, ranks)

        def claim() -> Path | None:
            held.enter_context(lease(task.folder))
            return open_run(task.folder, task.configuration, task.session, options.resume == "auto")

        newest = ranks.from_first(claim)
        if ranks.first:
            print(_said_at_the_start(task, newest), file=sys.stderr)
        try:
            train(task, initial, newest)
        except NonFiniteLossError as error:
            if ranks.first:
                write_file(task.folder / DIVERGED, f"{error}\n".encode())
            raise


def _said_at_the_start(task: Task, newest: Path | None) -> str:
    configuration, session = task.configuration, task.session
    epochs = session.steps * configuration.batch_size / len(task.samples)
    begins = f"goes on from {newest}" if newest else "begins"
    return (
        f"{configuration.model}, {configuration.stream}, {begins}: {len(task.samples)} clips, {session.steps} steps of "
        f"{configuration.batch_size} ({epochs:.3g} epochs); {task.ranks.count} x {task.ranks.device.type}, "
        f"{configuration.precision}, {session.workers} workers each"
    )


def _task(options: Options, ranks: Ranks) -> tuple[Task, Checkpoint | None]:
    """What is to be done, and the weights to begin with."""
    _check_shares(options, ranks)
    folder, cache = options.output or Path(), _cache(options)
    shards = pinned(folder, options.shards, "data") if options.resume == "auto" else options.shards
    samples = trainable_samples(open_samples(shards, options.split, cache), streams_of(options.stream))
    _require_room(samples)
    _require_large_pictures(options, options.shards, samples)
    validation = _validation(options, folder, samples, cache)
    if options.hold_out is not None:
        samples, validation = hold_out(samples, options.hold_out)
    initial = load_checkpoint(options.init, streams_of(options.stream)) if options.init is not None else None
    if initial is not None and initial.architecture != options.model:
        raise ValueError(
            f"{options.init}: its architecture is {initial.architecture}, --model {options.model} was asked for"
        )
    configuration = _configuration(options, samples, validation, initial, ranks)
    session = _session(options, samples, ranks)
    return Task(folder, configuration, session, samples, validation, ranks), initial


def _check(options: Options) -> None:
    if options.output is None and not options.bench_data:
        raise ValueError("--output: name a folder for the run")
    if (options.steps is None) == (options.epochs is None) and not options.bench_data:
        raise ValueError("how long to train: give either --steps or --epochs")
    if options.model != "i3d" and options.frames is not None:
        raise ValueError(f"--frames {options.frames}: the windows of --model {options.model} are as in the paper")
    if options.model == "c3d" and options.crop not in (C3D_SIDE, 2 * C3D_SIDE):
        raise ValueError(f"--crop {options.crop}: --model c3d sees {C3D_SIDE} pixels a side, or twice as many halved")
    if options.model in ("lstm", "c3d", "i3d") and options.stream == "both":
        raise ValueError(f"--stream both: --model {options.model} sees one stream; train each, and test them together")
    if options.val_shards is None and options.val_split is not None:
        raise ValueError(f"--val-split {options.val_split} wants --val-shards")
    if options.val_shards is not None and options.hold_out is not None:
        raise ValueError(f"--hold-out {options.hold_out:g}: clips to test on come from --val-shards already")


def _cache(options: Options) -> Cache | None:
    return Cache(options.cache.resolve(), int(options.cache_gigabytes * 1e9)) if options.cache is not None else None


def _require_room(samples: Samples) -> None:
    """Raise `ValueError` for a cache that shards would leave again before they were used."""
    remote = sorted((shard.bytes for shard in samples.shards if shard.is_remote), reverse=True)
    needed = sum(remote[: 2 * WINDOW_SHARDS])
    if samples.cache is not None and needed > samples.cache.maximum_bytes:
        raise ValueError(
            f"--cache-gigabytes {samples.cache.maximum_bytes / 1e9:g} is too little: training reads from "
            f"{2 * WINDOW_SHARDS} shards at a time, here up to {needed / 1e9:.3g} GB"
        )


def _require_large_pictures(options: Options, shards: str, samples: Samples) -> None:
    """Raise `ValueError` for stored pictures that are known to be smaller than the crop."""
    side = samples.short_side
    if side is None or side >= options.crop:
        return
    fitting = C3D_SIDE if options.model == "c3d" else side
    remedy = f"give --crop {fitting}" if fitting <= side else f"--model c3d sees {C3D_SIDE} pixels at least"
    raise ValueError(f"{shards}: stored short side {side} is smaller than --crop {options.crop}: {remedy}")


def _speed_of_loading(task: Task) -> LoaderSpeed:
    """Load as the run would, as fast as it goes."""
    configuration, workers = task.configuration, task.session.workers
    batches = training_batches(
        task.samples, task.streams, task.plan, range(2**40), configuration.crop, task.share, workers
    )
    with prefetching(task.samples, task.plan) as prefetch:
        if prefetch:
            prefetch.at(0)
        return bench_data(batches, task.ranks.device)


def _check_shares(options: Options, ranks: Ranks) -> None:
    """Raise `ValueError` where a batch cannot be dealt out evenly."""
    if options.batch_size % (ranks.count * options.accumulate):
        raise ValueError(
            f"--batch-size {options.batch_size} is that of all ranks together: it must be a multiple of "
            f"{ranks.count} ranks times --accumulate {options.accumulate}"
        )
    if options.model in ("lstm", "c3d") and options.batch_size == ranks.count * options.accumulate:
        raise ValueError(
            f"--batch-size {options.batch_size}: --model {options.model} normalises over clips and wants at least 2 "
            "on each rank in each of its --accumulate parts"
        )


def _require_one_run(configuration: Configuration, session: Session, ranks: Ranks) -> None:
    """Raise `RunError` where a rank has other options or finds other data: a dataset may grow while they start."""
    mine = {**asdict(configuration), "steps": session.steps, "accumulate": session.accumulate}
    first, *others = ranks.gather([mine])
    for rank, other in enumerate(others, start=1):
        if changed := differences(first, other):
            raise RunError(f"rank {rank} would train something else than rank 0: {', '.join(changed)}")


def _configuration(
    options: Options, samples: Samples, validation: Samples | None, initial: Checkpoint | None, ranks: Ranks
) -> Configuration:
    """What the run computes."""
    rate = options.lr if options.lr is not None else rate_of_batch(options.batch_size)
    length = schedule_steps(options.schedule, _steps(options, samples))
    released: Stream = "flow" if options.stream == "flow" else "rgb"
    return Configuration(
        model=options.model,
        stream=options.stream,
        frames=options.frames or window_of(options.model, streams_of(options.stream)).frames,
        crop=options.crop,
        batch_size=options.batch_size,
        schedule=Schedule(options.schedule, rate, options.warm_up_steps, length, released),
        evaluate_every=options.evaluate_every or steps_to_evaluation(len(samples), options.batch_size),
        patience=options.patience,
        flip=options.flip,
        seed=options.seed,
        precision=_precision(options.precision, ranks.device),
        data=identity(samples),
        validation=identity(validation) if validation is not None else None,
        hold_out=options.hold_out,
        initial=initial.sha256 if initial is not None else None,
        weight_decay=options.weight_decay,
        dropout=options.dropout,
        clip_gradient=options.clip_gradient,
        sync_bn=options.sync_bn,
        temporal_padding=initial.temporal_padding if initial is not None else "zero",
    )


def _session(options: Options, samples: Samples, ranks: Ranks) -> Session:
    """How this start does it."""
    return Session(
        steps=_steps(options, samples),
        checkpoint_every=options.checkpoint_every,
        workers=decoding_processes(options.workers, ranks.on_this_node),
        ranks=ranks.count,
        accumulate=options.accumulate,
        compile=options.compile,
        checkpoint_activations=options.checkpoint_activations,
        max_bad=options.max_bad,
        shards=options.shards,
        validation_shards=options.val_shards if options.hold_out is None else options.shards,
        init=str(options.init) if options.init is not None else None,
        device=str(ranks.device),
        command=sys.argv,
    )


def _steps(options: Options, samples: Samples) -> int:
    if options.steps is not None:
        return options.steps
    steps = math.ceil((options.epochs or 1) * len(samples) / options.batch_size)  # one where only loading is timed
    if steps > MAXIMUM_STEPS:
        raise ValueError(f"--epochs {options.epochs} are {steps} steps, want at most {MAXIMUM_STEPS}")
    return steps


def _validation(options: Options, folder: Path, samples: Samples, cache: Cache | None) -> Samples | None:
    if options.val_shards is None:
        return None
    shards = pinned(folder, options.val_shards, "validation") if options.resume == "auto" else options.val_shards
    opened = open_samples(shards, options.val_split, cache)
    _require_large_pictures(options, options.val_shards, opened)
    validation = trainable_samples(opened, streams_of(options.stream), "--val-split")
    if validation.classes != samples.classes:
        raise FormatError(f"{options.val_shards}: its classes are not those of the training data")
    sides = samples.short_side, validation.short_side
    if None not in sides and sides[0] != sides[1]:
        raise FormatError(
            f"{options.val_shards}: its pictures have a short side of {sides[1]} pixels, "
            f"the training data's of {sides[0]}"
        )
    if "flow" in streams_of(options.stream):
        samples.require_one_flow(validation)
    return validation


def _precision(wanted: str, device: torch.device) -> Precision:
    """What "auto" means here: bf16 on GPUs whose matrix units take it, which halves the time and more; else fp32.

    CPUs with bf16 units would be twice as fast, too. But with torch 2.13 (oneDNN 3.12) the gradients of 3-D
    convolutions' weights are wrong there: with AMX not finite, of the 3D-ConvNet's for one; without it finite and of
    100 % error, of I3D's last modules on 16 frames. Outputs and gradients of inputs are right.

    Raises:
        ValueError: bf16 on a CPU.
    """
    on_gpu = device.type == "cuda"
    if wanted == "bf16" and not on_gpu:
        raise ValueError(
            "--precision bf16 is for training on GPUs: on CPUs, torch's gradients of 3-D convolutions' weights are "
            "wrong in bf16, at some sizes without a sign of it; want fp32"
        )
    if wanted == "auto":
        return "bf16" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if wanted == "bf16" else "fp32"
