"""Pairs of pictures whose true flow is known: textured layers, moved by affine maps, nearer ones hiding others."""

from dataclasses import dataclass

import cv2
import numpy as np

HEIGHT, WIDTH = 256, 340


@dataclass(frozen=True)
class Scene:
    """How things move: `speed` pixels a frame, `turn` degrees, `zoom` a share; `objects` in front of the background."""

    name: str
    speed: float
    turn: float = 0.0
    zoom: float = 0.0
    objects: int = 3


SCENES = (
    Scene("small motion", 1.5),
    Scene("large motion", 9.0),
    Scene("turning", 1.0, turn=4.0),
    Scene("zooming", 1.0, zoom=0.05),
    Scene("all at once", 4.0, turn=3.0, zoom=0.04, objects=5),
)


def render_pair(
    scene: Scene, seed: int, height: int = HEIGHT, width: int = WIDTH
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two frames, and the true flow from the first to the second.

    Returns:
        [2, H, W] uint8 grey; [H, W, 2] float32 pixels; [H, W] bool: what is hidden or outside in the second frame.
    """
    rng = np.random.default_rng([seed, *scene.name.encode()])
    layers = [_layer(rng, scene, None, height, width)]
    for _ in range(scene.objects):
        layers.append(_layer(rng, scene, rng.uniform(0.12, 0.28) * height, height, width))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    here = np.stack([x, y], axis=-1)
    first, on_top = _draw(layers, here, moved=False)
    second, on_top_later = _draw(layers, here, moved=True)
    flow = np.zeros((height, width, 2), np.float32)
    hidden = np.zeros((height, width), bool)
    for number, layer in enumerate(layers):
        target = here @ layer.motion[:, :2].T + layer.motion[:, 2]
        seen = on_top == number
        flow[seen] = (target - here)[seen]
        column, row = np.rint(target[..., 0]).astype(int), np.rint(target[..., 1]).astype(int)
        outside = (column < 0) | (column >= width) | (row < 0) | (row >= height)
        covered = on_top_later[row.clip(0, height - 1), column.clip(0, width - 1)] != number
        hidden |= seen & (outside | covered)
    return np.stack([first, second]), flow, hidden


@dataclass(frozen=True)
class _Layer:
    texture: np.ndarray
    centre: np.ndarray
    radii: np.ndarray | None  # None for the background
    motion: np.ndarray  # [2, 3]: from places in the first frame to places in the second


def _layer(rng: np.random.Generator, scene: Scene, radius: float | None, height: int, width: int) -> _Layer:
    centre = rng.uniform((0.15 * width, 0.15 * height), (0.85 * width, 0.85 * height))
    direction = rng.uniform(0, 2 * np.pi)
    shift = scene.speed * rng.uniform(0.7, 1.3) * np.array([np.cos(direction), np.sin(direction)])
    angle, share = np.deg2rad(scene.turn * rng.uniform(-1, 1)), 1 + scene.zoom * rng.uniform(-1, 1)
    turned = share * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    motion = np.column_stack([turned, centre - turned @ centre + shift]).astype(np.float32)
    radii = None if radius is None else radius * rng.uniform(0.7, 1.4, 2)
    return _Layer(_texture(rng, height + 128, width + 128), centre, radii, motion)


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Noise of several sizes around a grey of its own, float32 in 0…255."""
    sum_of_sizes = np.zeros((height, width))
    for pixels, weight in ((1.2, 0.5), (3, 1.0), (9, 1.4), (27, 1.4)):
        noise = cv2.GaussianBlur(rng.normal(size=(height, width)), (0, 0), pixels)
        sum_of_sizes += weight * noise / noise.std()
    return np.clip(rng.uniform(80, 175) + 22 * sum_of_sizes, 0, 255).astype(np.float32)


def _draw(layers: list[_Layer], here: np.ndarray, *, moved: bool) -> tuple[np.ndarray, np.ndarray]:
    """A frame [H, W] uint8, and the number of the layer on top at each pixel."""
    picture, on_top = np.zeros(here.shape[:2], np.float32), np.zeros(here.shape[:2], int)
    for number, layer in enumerate(layers):
        place = here
        if moved:
            back = np.linalg.inv(layer.motion[:, :2])
            place = ((here - layer.motion[:, 2]) @ back.T).astype(np.float32)
        x, y = np.ascontiguousarray(place[..., 0] + 64), np.ascontiguousarray(place[..., 1] + 64)
        drawn = cv2.remap(layer.texture, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_WRAP)
        inside = np.ones(here.shape[:2], bool)
        if layer.radii is not None:
            inside = (((place - layer.centre) / layer.radii) ** 2).sum(-1) < 1
        picture[inside], on_top[inside] = drawn[inside], number
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8), on_top
