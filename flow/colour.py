"""Flow as a picture: the Middlebury colour code (Baker et al., A Database and Evaluation Methodology, IJCV 2011).

Hue is direction, saturation is speed; one fixed scale a picture series, so that pictures can be compared.
"""

import numpy as np

# Steps between the six pure hues; perceptual, not equal: 15 red-yellow, 6 yellow-green, 4 green-cyan, 11 cyan-blue,
# 13 blue-magenta, 6 magenta-red.
HUE_STEPS = (15, 6, 4, 11, 13, 6)
HUES = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1]], np.float64)


def colour_wheel() -> np.ndarray:
    """The 55 colours of the wheel: [55, 3] float RGB in 0…1."""
    segments = [
        HUES[i] + (HUES[(i + 1) % 6] - HUES[i]) * (np.arange(steps) / steps)[:, None]
        for i, steps in enumerate(HUE_STEPS)
    ]
    return np.asarray(np.concatenate(segments))


def colour_code(flow: np.ndarray, scale_pixels: float = 5.0) -> np.ndarray:
    """Colour-code a flow field.

    Args:
        flow: [H, W, 2] float pixels, x right and y down.
        scale_pixels: the speed shown fully saturated; faster motion is shown darker.

    Returns:
        [H, W, 3] uint8 RGB; white is no motion, red is motion to the right.

    Raises:
        ValueError: another shape, or a scale that is not positive.
    """
    if flow.ndim != 3 or flow.shape[2] != 2:
        raise ValueError(f"flow must be [H, W, 2], not {list(flow.shape)}")
    if not scale_pixels > 0:
        raise ValueError(f"scale {scale_pixels} must be a positive number of pixels")
    wheel = colour_wheel()
    speed = np.hypot(flow[..., 0], flow[..., 1]) / scale_pixels
    turn = np.arctan2(flow[..., 1], flow[..., 0]) / (2 * np.pi) % 1.0 * len(wheel)
    low = np.floor(turn).astype(int) % len(wheel)
    share = (turn - np.floor(turn))[..., None]
    hue = (1 - share) * wheel[low] + share * wheel[(low + 1) % len(wheel)]
    within = (1 - np.minimum(speed, 1.0)[..., None] * (1 - hue)) * np.where(speed > 1, 0.75, 1.0)[..., None]
    return np.asarray(np.rint(within * 255), np.uint8)


def film_strip(frames: np.ndarray, fields: np.ndarray | None, scale_pixels: float = 5.0) -> np.ndarray:
    """Frames in a row, and below each the flow from it in colours.

    Args:
        frames: [N, H, W, 3] uint8 RGB.
        fields: [N, H, W, 2] float pixels, or None for the frames alone.
        scale_pixels: as of `colour_code`.

    Returns:
        [H or 2H, N · W, 3] uint8 RGB.
    """
    rows = [np.concatenate(list(frames), axis=1)]
    if fields is not None:
        rows.append(np.concatenate([colour_code(field, scale_pixels) for field in fields], axis=1))
    return np.concatenate(rows)


def colour_legend(side_pixels: int = 64) -> np.ndarray:
    """The wheel itself as a disc on white: [side, side, 3] uint8; its rim is the full scale."""
    axis = np.linspace(-1, 1, side_pixels)
    x, y = np.meshgrid(axis, axis)
    disc = colour_code(np.stack([x, y], axis=-1), scale_pixels=1.0)
    disc[np.hypot(x, y) > 1] = 255
    return disc
