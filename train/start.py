"""From a user's words to a training run: find the samples, decide what is left open, claim the folder, train."""

import math
import os
from pathlib import Path

import torch

from manifests.lease import lease
from manifests.sample import FormatError
from model import Stream, load_checkpoint
from train.loop import train
from train.run import Configuration, Precision, Session, identity, open_run
from train.stream import Samples, open_samples, trainable_samples

RELEASED_RATE = 0.1  # of DeepMind's training, with 64 replicas of 6 clips each
RELEASED_BATCH = 384
MAXIMUM_WORKERS = 8


def start(
    *,
    shards: str,
    split: str | None,
    stream: Stream,
    output: Path,
    val_shards: str | None,
    val_split: str | None,
    steps: int | None,
    epochs: float | None,
    batch_size: int,
    frames: int,
    crop: int,
    lr: float | None,
    patience: int,
    flip: bool,
    init: Path | None,
    resume: str,
    evaluate_every: int | None,
    checkpoint_every: int,
    precision: str,
    seed: int,
    workers: int | None,
) -> None:
    """Train as the command's options say.

    Raises:
        ValueError: not exactly one of steps and epochs, or one that is not finite.
        FormatError: data that cannot be trained on.
        CheckpointError: initial weights, or a state to resume from, that cannot be used.
        RunError: a folder that holds something else.
        LeaseHeld: another process trains in that folder.
        NonFiniteLossError: the training diverged.
        OSError: a file that cannot be read or written.
    """
    for name, value in (("--epochs", epochs), ("--lr", lr)):
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{name} {value} is not finite")
    if (steps is None) == (epochs is None):
        raise ValueError("how long to train: give either --steps or --epochs")
    samples = trainable_samples(open_samples(shards, split), stream)
    validation = _validation(val_shards, val_split, samples, stream)
    an_epoch = math.ceil(len(samples) / batch_size)
    initial = load_checkpoint(init, stream) if init is not None else None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    configuration = Configuration(
        stream=stream,
        frames=frames,
        crop=crop,
        batch_size=batch_size,
        learning_rate=lr if lr is not None else RELEASED_RATE * batch_size / RELEASED_BATCH,
        evaluate_every=evaluate_every or an_epoch,
        patience=patience,
        flip=flip,
        seed=seed,
        precision=_precision(precision, device),
        data=identity(samples),
        validation=identity(validation) if validation is not None else None,
        initial=initial.sha256 if initial is not None else None,
        temporal_padding=initial.temporal_padding if initial is not None else "zero",
    )
    session = Session(
        steps=steps or math.ceil((epochs or 0) * len(samples) / batch_size),
        checkpoint_every=checkpoint_every,
        workers=workers if workers is not None else min(MAXIMUM_WORKERS, max(1, (os.cpu_count() or 1) - 1)),
        shards=shards,
        validation_shards=val_shards,
        init=str(init) if init is not None else None,
        device=str(device),
    )
    with lease(output):
        resume_from = open_run(output, configuration, session, resume == "auto")
        train(output, configuration, session, samples, validation, initial, resume_from)


def _validation(shards: str | None, split: str | None, samples: Samples, stream: Stream) -> Samples | None:
    if shards is None:
        if split is not None:
            raise ValueError(f"--val-split {split} wants --val-shards")
        return None
    validation = trainable_samples(open_samples(shards, split), stream)
    if validation.classes != samples.classes:
        raise FormatError(f"{shards}: its classes are not those of the training data")
    if stream == "flow":
        samples.require_one_flow(validation)
    return validation


def _precision(wanted: str, device: torch.device) -> Precision:
    """What "auto" means here: bf16 where matrix units take it, which halves the time and more; else fp32."""
    if wanted != "auto":
        return "bf16" if wanted == "bf16" else "fp32"
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = bool(torch.cpu.get_capabilities().get("amx_bf16") or torch.cpu.get_capabilities().get("avx512_bf16"))
    return "bf16" if fast else "fp32"
