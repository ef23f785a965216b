"""The demo's report page: what the networks learnt, curves, classes, predictions, and the data they saw."""

import json
from pathlib import Path
from typing import Any

from manifests.files import write_file
from manifests.page import page
from pipeline.account import take_account
from pipeline.pictures import clip_figure
from pipeline.preview import read_sample
from pipeline.report import dataset_sections
from train.log import read_metrics
from train.report import loss_curves, per_class_table, prediction, validation_curves

PICTURES = 12


def write_page(folder: Path, runs: dict[str, Path], found: dict[str, Any], single: dict[str, Any]) -> Path:
    """Write `report.html` into the demo's folder.

    Args:
        folder: the demo's, with `dataset` in it.
        runs: name → folder of each training run.
        found: JSON of the two-stream evaluation.
        single: JSON of the single-frame classifier's.
    """
    metrics = {name: read_metrics(run / "metrics.jsonl") for name, run in runs.items()}
    sections = [
        _cards(found, single),
        f"<h2>Learning</h2>{loss_curves(metrics)}{validation_curves(metrics)}",
        f"<h2>Held-out clips by class</h2>{per_class_table(found)}",
        _predictions(folder / "dataset", found["clips"]),
        "<h1>The data</h1>",
        *dataset_sections(folder / "dataset", take_account(folder / "dataset")),
    ]
    path = folder / "report.html"
    write_file(path, page("Two-stream I3D on rendered motion", sections).encode())
    return path


def _cards(found: dict[str, Any], single: dict[str, Any]) -> str:
    shares = {
        "both streams": found["top1"],
        "flow": found["streams"]["flow"]["top1"],
        "RGB": found["streams"]["rgb"]["top1"],
        "single frames": single["top1"],
        "chance": 1 / len(found["per_class"]),
    }
    cards = "".join(f"<li><b>{share:.0%}</b>{name}</li>" for name, share in shares.items())
    return (
        f'<ul class="cards">{cards}</ul><p>Share of {found["clips_labelled"]} held-out clips whose class was found. '
        "Shapes, textures, colours and speeds of held-out clips do not occur in training. The classes differ in motion "
        "only: a classifier of single frames, trained in the same way, shows that nothing else gives them away.</p>"
    )


def _predictions(dataset: Path, clips: list[dict[str, Any]]) -> str:
    """Wrong ones first, then one of each class in turn."""
    seen: dict[str, int] = {}
    order = []
    for clip in clips:
        wrong = clip["top5"][0]["label"] != clip["label"]
        order.append((not wrong, seen.setdefault(clip["label"], 0)))
        seen[clip["label"]] += 1
    chosen = [clip for _, clip in sorted(zip(order, clips, strict=True), key=lambda pair: pair[0])[:PICTURES]]
    figures = [
        clip_figure(
            read_sample(dataset, clip["key"]), f"{clip['label']}: {clip['key']}", f"{prediction(clip)}<br>{clip['key']}"
        )
        for clip in chosen
    ]
    return f"<h2>Predictions on held-out clips</h2><p>Wrong ones first.</p>{''.join(figures)}"


def summary(found: dict[str, Any], single: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The demo's `summary.json`: shares (0…1) of held-out clips right, number of classes, wall-clock seconds."""
    return {
        "rgb": found["streams"]["rgb"]["top1"],
        "flow": found["streams"]["flow"]["top1"],
        "both": found["top1"],
        "single_frame": single["top1"],
        "classes": len(found["per_class"]),
        "seconds": round(seconds, 1),
    }


def read_json(file: Path) -> dict[str, Any]:
    """An evaluation's result."""
    return dict(json.loads(file.read_bytes()))
