"""What is stored of a clip: its members and metadata, and by what they were made."""

import hashlib
import importlib.metadata
import json
import re
from functools import cache, partial
from typing import Any

import av
import cv2
import numba

from flow import fastest_backend
from manifests.classes import ClassList
from manifests.clip import Clip
from manifests.files import canonical_json
from manifests.sample import CLASS, FLOW, FORMAT_VERSION, METADATA, RGB, FlowCoding, Specification
from pipeline import turns
from pipeline.job import Job
from pipeline.process import ChildKilled, ChildTimeout, run_child
from pipeline.video import StoredRgb, flow_of


def members_without_flow(clip: Clip, rgb: StoredRgb, job: Job) -> dict[str, bytes]:
    """What is stored of a clip before its flow."""
    members = {RGB: rgb.content, METADATA: canonical_json(describe(clip, rgb, job.specification, job.classes))}
    if clip.label is not None:
        members[CLASS] = str(job.classes.index[clip.label]).encode()
    return members


def describe(clip: Clip, rgb: StoredRgb, specification: Specification, classes: ClassList) -> dict[str, Any]:
    """The metadata of a sample that has no flow yet: a pure function of the clip and its stored bytes."""
    return {
        "format_version": FORMAT_VERSION,
        "key": clip.key,
        "source": {
            "origin": clip.origin,
            "video": clip.video,
            "width": rgb.source.width,
            "height": rgb.source.height,
            "frame_rate": str(rgb.source.frame_rate),
        },
        "start_seconds": clip.start_seconds,
        "end_seconds": clip.end_seconds,
        "duration_seconds": rgb.frames / specification.rgb.frame_rate,
        "label": clip.label,
        "class_index": None if clip.label is None else classes.index[clip.label],
        "classes": {"name": classes.name, "sha256": classes.sha256},
        "split": clip.split,
        "memberships": list(clip.memberships),
        "rgb": {
            "frames": rgb.frames,
            "width": rgb.width,
            "height": rgb.height,
            "frame_rate": specification.rgb.frame_rate,
            "duplicated": rgb.duplicated,
            "dropped": rgb.dropped,
            "sha256": hashlib.sha256(rgb.content).hexdigest(),
        },
        "flow": None,
    }


def add_flow(members: dict[str, bytes], coding: FlowCoding, seconds: dict[str, float]) -> dict[str, bytes]:
    """Compute flow from a sample's stored RGB and give the sample with it: flow has one picture less than RGB.

    How long that had a GPU is noted in `seconds`.
    """
    backend = fastest_backend()
    flow = flow_of(members[RGB], coding, backend=backend, gpu=partial(turns.on_gpu, seconds))
    metadata = json.loads(members[METADATA])
    if flow.frames != metadata["rgb"]["frames"] - 1:
        raise RuntimeError(f"{metadata['key']}: {flow.frames} flows of {metadata['rgb']['frames']} frames")
    metadata["flow"] = {
        "frames": flow.frames,
        "width": flow.width,
        "height": flow.height,
        "bound_pixels": coding.bound_pixels,
        "variant": coding.variant,
        "variant_version": coding.variant_version,
        "parameters": coding.parameters,
        "backend": backend,
        "sha256": hashlib.sha256(flow.content).hexdigest(),
    }
    return {**members, FLOW: flow.content, METADATA: canonical_json(metadata)}


def stored_counts(members: dict[str, bytes]) -> dict[str, int]:
    """What the ledger says of a finished clip."""
    rgb = json.loads(members[METADATA])["rgb"]
    counts = {name: rgb[name] for name in ("frames", "duplicated", "dropped")}
    return {**counts, "rgb_bytes": len(members[RGB]), "flow_bytes": len(members.get(FLOW, b""))}


@cache
def versions() -> dict[str, str]:
    """Of the programs that decide what becomes of a clip, on this machine."""
    try:
        banner, _ = run_child(["ffmpeg", "-version"], deadline_seconds=60)
    except (ChildKilled, ChildTimeout):  # no reason to end the run
        banner = b""
    found = re.match(rb"ffmpeg version (\S+)", banner)
    return {
        "ffmpeg": found[1].decode(errors="replace") if found else "unknown",
        "yt-dlp": importlib.metadata.version("yt-dlp"),
        "quo-vadis-rebuilt": importlib.metadata.version("quo-vadis-rebuilt"),
    }


def provenance(specification: Specification) -> dict[str, str]:
    """What made a generation: backends and versions, which the specification leaves open."""
    made_by = {"pyav": av.__version__}
    if specification.flow is not None:
        made_by |= {"flow_backend": fastest_backend(), "opencv": cv2.__version__, "numba": numba.__version__}
    return made_by
