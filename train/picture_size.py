"""Which pictures networks are shown: such as they were trained on, unless a user says otherwise."""

from collections.abc import Mapping
from typing import NamedTuple

import click

from manifests.sample import RgbCoding
from model import Checkpoint
from train.decode import CROP_PIXELS
from train.stream import Inputs

RELEASED_SHORT_SIDE = RgbCoding.short_side


class PictureSize(NamedTuple):
    """Squares of `crop` pixels a side out of pictures whose shorter side has `short_side` pixels."""

    crop: int
    short_side: int


def trained_on(checkpoint: Checkpoint) -> tuple[int | None, int | None]:
    """Crop and short side that a network was trained on: 224 of 256 the released ones; None where that is unknown."""
    if checkpoint.is_own:
        return checkpoint.crop, checkpoint.short_side
    return CROP_PIXELS, RELEASED_SHORT_SIDE


def crop_to_show(checkpoints: Mapping[Inputs, Checkpoint], typed: int | None) -> int:
    """The crop in pixels for networks, by what they see: the typed one, else what they were trained on, else 224.

    A line on stderr says so where a network was trained on another one than is typed.

    Raises:
        ValueError: none is typed, and they were trained on different ones.
    """
    return _to_show("--crop", typed, {name: trained_on(found)[0] for name, found in checkpoints.items()}, CROP_PIXELS)


def size_to_show(checkpoints: Mapping[Inputs, Checkpoint], crop: int | None, short_side: int | None) -> PictureSize:
    """The crop as of `crop_to_show`, and the short side likewise, else 256, where pictures are prepared for networks.

    A line on stderr says so where 256 is taken for a network of a known crop out of unknown pictures.

    Raises:
        ValueError: as `crop_to_show`; or the crop is larger than the pictures.
    """
    sides = {name: trained_on(found)[1] for name, found in checkpoints.items()}
    shown = PictureSize(
        crop_to_show(checkpoints, crop), _to_show("--short-side", short_side, sides, RELEASED_SHORT_SIDE)
    )
    if shown.crop > shown.short_side:
        raise ValueError(
            f"pictures of short side {shown.short_side} are smaller than the crop of {shown.crop}x{shown.crop} (--crop)"
        )
    for name, found in checkpoints.items():
        if short_side is None and sides[name] is None and found.crop is not None:
            _warn(
                f"{name} does not say of which short side its pictures were: --short-side {shown.short_side} is taken"
            )
    return shown


def warn_of_others(checkpoints: Mapping[Inputs, Checkpoint], short_side: int | None) -> None:
    """A line on stderr where data has another short side, in pixels, than networks were trained on."""
    if short_side is not None:
        sides = {name: trained_on(found)[1] for name, found in checkpoints.items()}
        _warn_of_others(f"the data's short side is {short_side}", short_side, sides)


def _to_show(option: str, typed: int | None, trained: Mapping[Inputs, int | None], default: int) -> int:
    if typed is not None:
        _warn_of_others(f"{option} is {typed}", typed, trained)
        return typed
    known = {name: pixels for name, pixels in trained.items() if pixels is not None}
    if len(set(known.values())) > 1:
        raise ValueError(f"{option}: {_in_words(known)} pixels: say with which to test them")
    return next(iter(known.values()), default)


def _warn_of_others(what: str, pixels: int, trained: Mapping[Inputs, int | None]) -> None:
    others = {name: other for name, other in trained.items() if other is not None and other != pixels}
    if others:
        _warn(f"{what}, but {_in_words(others)} pixels")


def _in_words(trained: Mapping[Inputs, int]) -> str:
    return ", ".join(f"{name} was trained with {pixels}" for name, pixels in trained.items())


def _warn(message: str) -> None:
    click.echo(f"Warning: {message}", err=True)
