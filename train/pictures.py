"""A few held-out clips with their flow, and what training runs' best networks say of them, as figures of a page."""

from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import cv2
import numpy as np
import torch

from flow import colour_legend, decode_flow_codes, dequantise, film_strip
from manifests.clip import printable
from manifests.index import read_metadata
from manifests.page import Html, figure
from manifests.sample import FLOW, METADATA, RGB, FormatError
from model import CheckpointError
from pipeline.video import VideoError, decode_rgb
from train.decode import MEMBER_OF, whole_clip
from train.evaluate import clip_logits, load_streams, sum_of_streams, top_classes
from train.hold_out import hold_out
from train.page import Run
from train.progress import shown
from train.report import judged
from train.run import identity
from train.stream import Sample, Samples, at_snapshot, open_samples, streams_of, trainable_samples

COLUMNS = 6
FLOW_SCALE_PIXELS = 5.0
WIDTH_PIXELS = 960
LEGEND_PIXELS = 96
JPEG_QUALITY = 80

_UNREADABLE = (FormatError, CheckpointError, VideoError, ValueError, TypeError, OSError)


def clip_figures(runs: Sequence[Run], count: int) -> tuple[list[Html], list[str]]:
    """Figures of clips that runs were validated on; runs with the same ones share figures.

    Args:
        runs: whose `best.pt` is asked.
        count: how many clips of each set of validation clips.

    Returns:
        The figures, and for each run that is not in them why, in plain words.
    """
    left_out: list[str] = []
    together: dict[str, list[Run]] = {}
    for run in runs:
        validation = run.config["configuration"].get("validation")
        if not isinstance(validation, dict):
            left_out.append(f"{run.name}: was not validated, so no clips of it are shown.")
        else:
            together.setdefault(str(validation.get("sha256")), []).append(run)
    figures: list[Html] = []
    for group in together.values():
        figures += _figures(group, count, left_out)
    if figures:
        words = f"Flow: hue is direction, saturation is speed; the rim is {FLOW_SCALE_PIXELS:g} pixels a frame."
        wheel = encoded(".png", colour_legend(LEGEND_PIXELS))
        figures.insert(0, figure(wheel, "image/png", LEGEND_PIXELS, LEGEND_PIXELS, "Colour wheel", words))
    return figures, left_out


def _figures(runs: Sequence[Run], count: int, left_out: list[str]) -> Iterator[Html]:
    """Figures of the validation clips that all of these runs have."""
    samples, chosen = None, []
    answers: dict[str, dict[str, Any]] = {}  # of each clip by key: run → what it says
    for run in runs:
        try:
            if samples is None:
                samples = _validation_samples(run)
                chosen = _choose(samples, count)
            for key, answer in _answers(run, samples, chosen).items():
                answers.setdefault(key, {})[run.name] = answer
        except _UNREADABLE as error:
            left_out.append(f"{run.name}: its clips are not shown: {printable(str(error)[:300])}")
    for sample in chosen if answers else []:
        try:
            yield _figure(sample, answers[sample.key])
        except _UNREADABLE as error:
            left_out.append(f"{sample.key} is not shown: {printable(str(error)[:300])}")


def _validation_samples(run: Run) -> Samples:
    """The clips that a run was validated on, where they still are what they were."""
    shards, validation = run.config["session"].get("validation_shards"), run.config["configuration"]["validation"]
    if not isinstance(shards, str) or not isinstance(validation.get("split"), str | None):
        raise FormatError("config.json does not say where they are")
    snapshot = validation.get("snapshot")
    pinned = at_snapshot(shards, snapshot) if isinstance(snapshot, str) else shards
    samples = trainable_samples(open_samples(pinned, validation.get("split")), streams_of(run.stream))
    share = run.config["configuration"].get("hold_out")
    if isinstance(share, float):
        samples = hold_out(samples, share)[1]
    if identity(samples)["sha256"] != validation.get("sha256"):
        raise FormatError(f"{shards} holds other clips than those it was validated on")
    return samples


def _choose(samples: Samples, count: int) -> list[Sample]:
    """One clip of each class before a second of any, in the order of their keys."""
    seen: Counter[int] = Counter()
    turns = []
    for number, sample in enumerate(samples):
        index = int(sample.record["class_index"])
        turns.append((seen[index], number, sample))
        seen[index] += 1
    return [sample for _, _, sample in sorted(turns, key=lambda turn: turn[:2])[:count]]


def _answers(run: Run, samples: Samples, chosen: Sequence[Sample]) -> dict[str, Any]:
    """By key, what a run's best network says of the chosen clips."""
    best = run.folder / "best.pt"
    if not best.is_file():
        raise FormatError("there is no best.pt")
    crop = run.config["configuration"].get("crop")
    if type(crop) is not int or crop < 1:
        raise FormatError(f"crop {crop!r} is no number of pixels")
    streams = load_streams({run.stream: best}, samples.classes)
    found = {}
    for sample in shown(chosen, f"clips by {run.name}", len(chosen)):
        members = sample.read(tuple(MEMBER_OF[stream] for stream in streams.seen))
        clips = {s: whole_clip(members[MEMBER_OF[s]], s, crop) for s in streams.seen}
        logits = clip_logits({s: torch.from_numpy(clip) for s, clip in clips.items()}, streams)
        found[sample.key] = top_classes(sum_of_streams(logits), streams.classes, 1)[0]
    return found


def _figure(sample: Sample, answers: dict[str, Any]) -> Html:
    """Frames and flow of a clip, and what each run says of it."""
    members = sample.read()
    metadata = read_metadata(members[METADATA], sample.name)
    frames = decode_rgb(members[RGB])
    places = np.unique(np.linspace(0, len(frames) - 2, COLUMNS).round().astype(int))
    fields = None
    if FLOW in members:
        fields = dequantise(decode_flow_codes(members[FLOW])[places], metadata["flow"]["bound_pixels"])
    picture = film_strip(frames[places], fields, FLOW_SCALE_PIXELS)
    height = round(picture.shape[0] * WIDTH_PIXELS / picture.shape[1])
    if picture.shape[1] > WIDTH_PIXELS:
        picture = cv2.resize(picture, (WIDTH_PIXELS, height), interpolation=cv2.INTER_AREA)
    label = metadata["label"]
    caption = f"<b>{escape(label)}</b> · {judged(answers, label)}<br>{escape(sample.key)}"
    return figure(encoded(".jpg", picture), "image/jpeg", WIDTH_PIXELS, height, f"{label}: {sample.key}", caption)


def encoded(suffix: str, picture: np.ndarray) -> bytes:
    """An RGB picture as the bytes of a file."""
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if suffix == ".jpg" else []
    ok, content = cv2.imencode(suffix, picture[..., ::-1], options)
    if not ok:
        raise RuntimeError(f"cannot encode a picture of {picture.shape} as {suffix}")
    return bytes(content)
