"""What the paper's tables 2 to 5 say (pages 6 to 8), so that other figures can stand beside it. All in percent."""

from typing import Literal, NamedTuple

from model import Architecture
from train.stream import Inputs

Setting = Literal["original", "fixed", "full-ft"]  # of table 4
MODELS: dict[Architecture, str] = {
    "lstm": "(a) LSTM",
    "c3d": "(b) 3D-ConvNet",
    "two-stream": "(c) Two-Stream",
    "fused": "(d) 3D-Fused",
    "i3d": "(e) Two-Stream I3D",
}
STREAMS: tuple[Inputs, ...] = ("rgb", "flow", "both")
DATASETS = ("UCF-101", "HMDB-51", "Kinetics")
SCRATCH, IMAGENET, KINETICS, IMAGENET_KINETICS = "scratch", "imagenet", "kinetics", "imagenet+kinetics"


class Place(NamedTuple):
    """Where a figure stands: on which data what was trained how, from which weights on."""

    dataset: str
    setting: Setting
    start: str
    model: Architecture
    stream: Inputs


class Score(NamedTuple):
    """Shares of clips right in percent; top-5 where the paper has it."""

    top1: float
    top5: float | None = None


_Row = tuple[float | None, float | None, float | None]  # RGB, flow, RGB + flow

# Split 1 of UCF-101 and HMDB-51, the test set of Kinetics; ImageNet first, the 3D-ConvNet from scratch.
_TABLE_2: dict[str, dict[Architecture, _Row]] = {
    "UCF-101": {
        "lstm": (81.0, None, None),
        "c3d": (51.6, None, None),
        "two-stream": (83.6, 85.6, 91.2),
        "fused": (83.2, 85.8, 89.3),
        "i3d": (84.5, 90.6, 93.4),
    },
    "HMDB-51": {
        "lstm": (36.0, None, None),
        "c3d": (24.3, None, None),
        "two-stream": (43.2, 56.3, 58.3),
        "fused": (49.2, 55.5, 56.8),
        "i3d": (49.8, 61.9, 66.4),
    },
    "Kinetics": {
        "lstm": (63.3, None, None),
        "c3d": (56.1, None, None),
        "two-stream": (62.2, 52.4, 65.6),
        "fused": (None, None, 67.2),
        "i3d": (71.1, 63.4, 74.2),
    },
}
# The test set of Kinetics, from scratch; with ImageNet first it is table 2's.
_TABLE_3: dict[Architecture, _Row] = {
    "lstm": (53.9, None, None),
    "c3d": (56.1, None, None),
    "two-stream": (57.9, 49.6, 62.8),
    "fused": (None, None, 62.7),
    "i3d": (68.4, 61.5, 71.6),
}
_TOP5 = {
    (SCRATCH, "rgb"): 88.0,
    (SCRATCH, "flow"): 83.4,
    (SCRATCH, "both"): 90.0,
    (IMAGENET, "rgb"): 89.3,
    (IMAGENET, "flow"): 84.9,
    (IMAGENET, "both"): 91.3,
}
# Split 1, all streams that a model has: with ImageNet first, and without.
_TABLE_4: dict[str, dict[Setting, dict[Architecture, tuple[float | None, float]]]] = {
    "UCF-101": {
        "original": {
            "lstm": (81.0, 54.2),
            "c3d": (None, 51.6),
            "two-stream": (91.2, 83.6),
            "fused": (89.3, 69.5),
            "i3d": (93.4, 88.8),
        },
        "fixed": {
            "lstm": (88.1, 82.6),
            "c3d": (None, 76.0),
            "two-stream": (93.9, 93.3),
            "fused": (94.3, 89.8),
            "i3d": (97.7, 97.4),
        },
        "full-ft": {
            "lstm": (91.0, 86.8),
            "c3d": (None, 79.9),
            "two-stream": (94.2, 93.8),
            "fused": (94.2, 91.5),
            "i3d": (98.0, 97.6),
        },
    },
    "HMDB-51": {
        "original": {
            "lstm": (36.0, 18.3),
            "c3d": (None, 24.3),
            "two-stream": (58.3, 47.1),
            "fused": (56.8, 37.3),
            "i3d": (66.4, 62.2),
        },
        "fixed": {
            "lstm": (50.8, 47.1),
            "c3d": (None, 47.0),
            "two-stream": (66.6, 65.9),
            "fused": (69.9, 64.6),
            "i3d": (79.7, 78.6),
        },
        "full-ft": {
            "lstm": (53.4, 49.7),
            "c3d": (None, 49.4),
            "two-stream": (66.6, 64.3),
            "fused": (71.0, 66.5),
            "i3d": (81.2, 81.3),
        },
    },
}
# Means over the three splits of UCF-101 and of HMDB-51: methods of others, then I3D after full fine-tuning.
OTHERS: dict[str, tuple[float | None, float | None]] = {
    "Two-Stream": (88.0, 59.4),
    "IDT": (86.4, 61.7),
    "Dynamic Image Networks + IDT": (89.1, 65.2),
    "TDD + IDT": (91.5, 65.9),
    "Two-Stream Fusion + IDT": (93.5, 69.2),
    "Temporal Segment Networks": (94.2, 69.4),
    "ST-ResNet + IDT": (94.6, 70.3),
    "Deep Networks, Sports 1M pre-training": (65.2, None),
    "C3D one network, Sports 1M pre-training": (82.3, None),
    "C3D ensemble, Sports 1M pre-training": (85.2, None),
    "C3D ensemble + IDT, Sports 1M pre-training": (90.1, None),
}
_TABLE_5: dict[str, dict[Inputs, tuple[float, float]]] = {
    IMAGENET_KINETICS: {"rgb": (95.6, 74.8), "flow": (96.7, 77.1), "both": (98.0, 80.7)},
    KINETICS: {"rgb": (95.1, 74.3), "flow": (96.5, 77.3), "both": (97.8, 80.9)},
}


def streams_in_table4(model: Architecture) -> Inputs:
    """What table 4's figure of a model is of: RGB + flow where the model takes both."""
    return "rgb" if model in ("lstm", "c3d") else "both"


def figures(table: int) -> dict[Place, Score]:
    """The figures of table 2, 3, 4 or 5; those of table 5 are means over three splits."""
    found: dict[Place, Score] = {}
    if table == 2:
        for dataset, rows in _TABLE_2.items():
            for model, row in rows.items():
                start = SCRATCH if model == "c3d" else IMAGENET
                found |= _row(dataset, start, model, row)
    elif table == 3:
        for model, row in _TABLE_3.items():
            found |= _row("Kinetics", SCRATCH, model, row)
        for model, row in _TABLE_2["Kinetics"].items():
            if model != "c3d":
                found |= _row("Kinetics", IMAGENET, model, row)
        for (start, stream), top5 in _TOP5.items():
            place = next(p for p in found if (p.start, p.stream, p.model) == (start, stream, "i3d"))
            found[place] = found[place]._replace(top5=top5)
    elif table == 4:
        for dataset, settings in _TABLE_4.items():
            for setting, models in settings.items():
                starts = (IMAGENET, SCRATCH) if setting == "original" else (IMAGENET_KINETICS, KINETICS)
                for model, scores in models.items():
                    for start, score in zip(starts, scores, strict=True):
                        if score is not None:
                            found[Place(dataset, setting, start, model, streams_in_table4(model))] = Score(score)
    else:
        for start, streams in _TABLE_5.items():
            for stream, scores in streams.items():
                for dataset, score in zip(DATASETS, scores, strict=False):
                    found[Place(dataset, "full-ft", start, "i3d", stream)] = Score(score)
    return found


def _row(dataset: str, start: str, model: Architecture, row: _Row) -> dict[Place, Score]:
    return {
        Place(dataset, "original", start, model, stream): Score(score)
        for stream, score in zip(STREAMS, row, strict=True)
        if score is not None
    }
