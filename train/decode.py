"""Stored videos as input of the networks: decoded, cropped in the centre, scaled to [−1, 1]."""

import numpy as np
import torch
from torch import Tensor

from flow import decode_flow_codes
from flow.coding import STEPS, ZERO_CODE
from manifests.sample import MINIMUM_FRAMES
from pipeline.video import decode_rgb

CROP_PIXELS = 224


def rgb_input(video: bytes, crop: int = CROP_PIXELS) -> Tensor:
    """A whole stored RGB clip: [1, 3, T, crop, crop] float32, 0…255 mapped to −1…1.

    Raises:
        VideoError: corrupt.
        ValueError: pictures smaller than the crop.
    """
    pixels = torch.from_numpy(_clip(decode_rgb(video), crop))  # [T, crop, crop, 3] uint8
    return (pixels.float() / 127.5 - 1).permute(3, 0, 1, 2)[None]


def flow_input(video: bytes, crop: int = CROP_PIXELS) -> Tensor:
    """A whole stored flow clip: [1, 2, T, crop, crop] float32, ±bound mapped to ±1 and no motion to 0.

    Raises:
        ValueError: not a stored flow video, or pictures smaller than the crop.
    """
    codes = torch.from_numpy(_clip(decode_flow_codes(video), crop))  # [T, crop, crop, 2] uint8
    return ((codes.float() - ZERO_CODE) / STEPS).permute(3, 0, 1, 2)[None]


def _clip(frames: np.ndarray, crop: int) -> np.ndarray:
    """The centre of [T, H, W, C] frames; a clip of too few frames for I3D starts over, as in the paper (§3)."""
    height, width = frames.shape[1:3]
    if min(height, width) < crop:
        raise ValueError(f"pictures of {width}x{height} are smaller than the crop of {crop}x{crop}")
    top, left = (height - crop) // 2, (width - crop) // 2
    frames = frames[:, top : top + crop, left : left + crop]
    if len(frames) < MINIMUM_FRAMES:
        frames = frames[np.arange(MINIMUM_FRAMES) % len(frames)]
    return np.ascontiguousarray(frames)
