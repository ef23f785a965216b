"""The command `i3d-eval`: tests networks on whole clips, and says what it found and what of."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import click

from manifests.clip import printable
from manifests.files import write_file
from manifests.sample import FormatError
from model import CheckpointError
from train.clip_list import missing_clips
from train.evaluate import ClipResult, Protocol, Streams, evaluate, load_streams
from train.hold_out import hold_out
from train.loader import Bad, decoding_processes, naming_dead_workers
from train.options import (
    BOTH_OPTION,
    CONTEXT,
    CROPS_OPTION,
    FLIPS_OPTION,
    FLOW_OPTION,
    HELD_OUT_SHARE,
    MAX_BAD_OPTION,
    PRECISION_OPTION,
    RGB_OPTION,
    TESTED_CROP_OPTION,
    WORKERS_OPTION,
    check_outputs,
)
from train.picture_size import crop_to_show, warn_of_others
from train.progress import shown
from train.run import Precision
from train.scores import MEASURES, summary
from train.stream import Inputs, Samples, open_samples, trainable_samples

CLIPS_SHOWN = 20
LARGEST_WEIGHT = 1000.0  # of a network; beyond any use, and far from where logits would overflow


def _weights(_: click.Context, option: click.Parameter, text: str | None) -> dict[str, float]:
    """`rgb=1,flow=2` as numbers by name."""
    weights: dict[str, float] = {}
    for part in text.split(",") if text is not None else []:
        name, number = (word.strip() for word in part.partition("=")[::2])
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if name not in get_args(Inputs) or name in weights or not 0 < weight <= LARGEST_WEIGHT:
            raise click.BadParameter(
                f"{part!r}: want rgb, flow or both, each once, with a positive number of at most "
                f"{LARGEST_WEIGHT:g}, such as rgb=1,flow=2",
                param=option,
            )
        weights[name] = weight
    return weights


@click.command("i3d-eval", context_settings=CONTEXT)
@click.option("--shards", required=True, help="A dataset's folder (DIR or DIR@SNAPSHOT), or tars with braces or globs.")
@click.option("--split", help="Only this split, such as val or test1.")
@click.option("--hold-out", "share", type=HELD_OUT_SHARE, help="Only those clips that i3d-train --hold-out left out.")
@RGB_OPTION
@FLOW_OPTION
@BOTH_OPTION
@TESTED_CROP_OPTION
@CROPS_OPTION
@FLIPS_OPTION
@click.option(
    "--fusion-weights",
    "weights",
    callback=_weights,
    metavar="NAME=NUMBER,…",
    help="What logits are multiplied with before they are added, such as rgb=1,flow=2.  [default: 1 each]",
)
@click.option("--frames", type=click.IntRange(min=1), help="Only so many from the middle of each clip.  [default: all]")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the results here.")
@PRECISION_OPTION
@MAX_BAD_OPTION
@WORKERS_OPTION
def evaluate_command(
    shards: str,
    split: str | None,
    share: float | None,
    rgb: Path | None,
    flow: Path | None,
    both: Path | None,
    crop: int | None,
    json_file: Path | None,
    precision: Precision,
    max_bad: int,
    workers: int | None,
    **protocol: Any,
) -> None:
    """Evaluate networks on whole clips: centre crop, logits averaged over time, those of several networks added.

    Each is tested as in the paper: I3D on a clip at once, the others window by window.

    Pictures other than a network was trained on are said on stderr; networks of several crops want --crop.

    A checkpoint is a run's file, the prefix of a TensorFlow checkpoint, or a file of one of the PyTorch ports.

    Example: i3d-eval --shards k400 --split val --rgb rgb_scratch/model.ckpt --json result.json
    """
    try:
        given: dict[Inputs, Path | None] = {"rgb": rgb, "flow": flow, "both": both}
        _require_all_given(protocol["weights"], given)
        if json_file is not None:
            check_outputs({"--json": json_file.resolve()}, {f"--{name}": path for name, path in given.items()})
        samples = open_samples(shards, split)
        missing = missing_clips(samples, split)
        if share is not None:
            _, samples = hold_out(trainable_samples(samples, ()), share)
        if flow is not None or both is not None:
            samples.require_one_flow()
        streams = load_streams(given, samples.classes, precision=precision)
        how = Protocol(crop_to_show(streams.checkpoints, crop), **protocol)
        if samples.short_side is not None and how.crop > samples.short_side:
            small = f"pictures of short side {samples.short_side} are smaller"
            raise ValueError(f"{shards}: {small} than the crop of {how.crop}x{how.crop}")
        warn_of_others(streams.checkpoints, samples.short_side)
        if share is not None or split is None:  # another split than trained on is the usual case
            _warn_of_known_clips(streams, share)
        with naming_dead_workers():
            results, unreadable = _test(samples, streams, how, max_bad, decoding_processes(workers))
        found = {**summary(results, unreadable, samples, streams, how, split, missing), "hold_out": share}
        if json_file is not None:
            words = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)
            write_file(json_file.resolve(), words.encode() + b"\n")
    except (ValueError, CheckpointError, OSError) as error:
        raise click.ClickException(printable(str(error))) from error
    _print_summary(found)


def _test(
    samples: Samples, streams: Streams, how: Protocol, max_bad: int, workers: int
) -> tuple[list[ClipResult], list[Bad]]:
    """What the networks say of each clip, and the clips that cannot be used, which are said on stderr, too.

    Raises:
        FormatError: more than `max_bad` of these, or all.
        OSError: the samples cannot be reached, or a process that decodes has died.
    """
    results: list[ClipResult] = []
    unreadable: list[Bad] = []
    for result in shown(evaluate(samples, streams, how, workers), "clips", len(samples)):
        if isinstance(result, ClipResult):
            results.append(result)
            continue
        unreadable.append(result)
        click.echo(f"left out: {printable(result.message)}", err=True)
        if len(unreadable) > max_bad:
            raise FormatError(
                f"{len(unreadable)} clips cannot be used, more than --max-bad {max_bad}: {result.message}"
            )
    if unreadable and not results:
        raise FormatError(f"none of the {len(samples)} clips can be used: {unreadable[-1].message}")
    return results, unreadable


def _warn_of_known_clips(streams: Streams, share: float | None) -> None:
    """A line on stderr where networks may know clips that they are tested on: a share held out, or all (None)."""
    for name, checkpoint in streams.checkpoints.items():
        if checkpoint.is_own and checkpoint.hold_out != share:
            held = f"with --hold-out {checkpoint.hold_out:g}" if checkpoint.hold_out else "without --hold-out"
            said = f"{name} was trained {held}: if on this data, it may know some of the clips that it is tested on"
            click.echo(f"Warning: {said}", err=True)


def _require_all_given(weights: Mapping[str, float], given: Mapping[Inputs, Path | None]) -> None:
    for name, path in given.items():
        if name in weights and path is None:
            raise ValueError(f"--fusion-weights {name}={weights[name]:g}: there is no --{name}")


def _print_summary(found: dict[str, Any]) -> None:
    if len(found["clips"]) <= CLIPS_SHOWN:
        for clip in found["clips"]:
            best = clip["top5"][0]
            label = printable(clip["label"] or "none")
            click.echo(f"{clip['key']}  {best['probability']:.3f} {printable(best['label'])}  (label: {label})")
    click.echo(_clips_in_words(found))
    click.echo(_protocol_in_words(found["protocol"]))
    for name, checkpoint in found["checkpoints"].items():
        files = ", ".join(f"{printable(file)} {sha256[:12]}" for file, sha256 in checkpoint["sha256"].items())
        click.echo(f"{name}: {checkpoint['architecture']}, {files}")
    if not found["clips_labelled"]:
        return
    titles = ("top-1", "top-5", "mean of classes")
    click.echo(" " * 9 + "".join(f"{title:<26}" for title in titles).rstrip())
    together = [("together", found)] if len(found["streams"]) > 1 else []
    for name, scores in [*found["streams"].items(), *together]:
        told = (
            f"{scores[measure]:.4f} [{low:.4f}, {high:.4f}]"
            for measure in MEASURES
            for low, high in [scores["intervals"][measure]]
        )
        click.echo(f"{name:<9}" + "".join(f"{text:<26}" for text in told).rstrip())
    how = found["bootstrap"]
    drawn = f"bootstrap over source videos ({how['videos']}), {how['resamples']} resamples"
    click.echo(f"[{how['confidence']:.0%} intervals, {drawn}]")


def _clips_in_words(found: dict[str, Any]) -> str:
    """Which clips, and how many are missing, by reason."""
    clips = found["clip_list"]
    place = f"snapshot {found['snapshot']}" if found["snapshot"] else "tars"
    of = f"split {found['split'] or '(all)'}" + (f", --hold-out {found['hold_out']:g}" if found["hold_out"] else "")
    told = f"{place}, {of}: {clips['found']} clips, {found['clips_labelled']} with a label"
    told += f"; {len(clips['unreadable'])} could not be read" if clips["unreadable"] else ""
    if clips["missing"] is None:
        return f"{told}; without a ledger, nobody knows what is missing"
    reasons = Counter(clip["reason"] or "in a later snapshot" for clip in clips["missing"])
    told += f"; {len(clips['missing'])} of the list missing{_counted(reasons)}"
    if clips["unplaced"]:
        told += f"; {sum(clips['unplaced'].values())} more of splits unknown{_counted(clips['unplaced'])}"
    return told


def _counted(reasons: Mapping[str, int]) -> str:
    return f" ({', '.join(f'{printable(reason)} {number}' for reason, number in reasons.items())})" if reasons else ""


def _protocol_in_words(protocol: dict[str, Any]) -> str:
    crops = "centre crop" if protocol["crops"] == 1 else f"{protocol['crops']} crops"
    side = f" of short side {protocol['short_side']}" if protocol["short_side"] is not None else ""
    parts = [f"{crops} of {protocol['crop']} pixels{side}", f"frames: {protocol['frames'] or 'all'}"]
    parts += ["with flips"] if protocol["flips"] else []
    weights = protocol["weights"]
    parts += [" + ".join(f"{number:g} x {name}" for name, number in weights.items())] if len(weights) > 1 else []
    return ", ".join([*parts, protocol["precision"]])
