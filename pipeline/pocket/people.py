"""People on foot."""

from dataclasses import dataclass

import numpy as np

from pipeline.pocket.geometry import Builder, Category, bar, disc, upright
from pipeline.pocket.materials import Material


@dataclass(frozen=True)
class _Figure:
    """A person whose feet are at (x, z); size 1 is 1.72 m high."""

    x: float
    z: float
    size: float
    stride: float
    category: Category

    @property
    def height(self) -> float:
        return 1.72 * self.size

    @property
    def hip(self) -> float:
        """Height of the hips."""
        return 0.5 * self.height

    @property
    def shoulder(self) -> float:
        """Half the width of the shoulders."""
        return 0.22 * self.size

    @property
    def waist(self) -> float:
        """Half the width of the waist."""
        return 0.16 * self.size


def add_person(
    builder: Builder, rng: np.random.Generator, x: float, z: float, category: Category
) -> None:
    """Add a walking or standing person with its feet at (x, z)."""
    builder.at(z)
    size = float(rng.uniform(0.92, 1.08)) if rng.random() < 0.88 else float(rng.uniform(0.6, 0.8))
    stride = float(rng.choice([0.06, 0.2, 0.34])) * size
    top, legs, skin, hair = (int(value) for value in rng.integers(0, 240, 4))
    skirt = rng.random() < 0.2
    figure = _Figure(x, z, size, stride, category)
    _add_legs(builder, figure, legs)
    if skirt:
        _add_skirt(builder, figure, legs)
    _add_arms(builder, figure, top)
    _add_torso(builder, figure, top)
    _add_head(builder, figure, skin, hair)
    if rng.random() < 0.25:
        _add_bag(builder, rng, figure, hair)


def _add_legs(builder: Builder, figure: _Figure, variant: int) -> None:
    for sign, tone in ((-1.0, 0.85), (1.0, 1.0)):
        top = (figure.x + sign * 0.08 * figure.size, figure.hip)
        foot = (figure.x + sign * (0.09 + figure.stride * 0.8), 0.05)
        builder.add(
            [bar(top, foot, figure.z, 0.17 * figure.size)],
            figure.category,
            Material.TROUSERS,
            variant=variant,
            tone=tone,
        )


def _add_skirt(builder: Builder, figure: _Figure, variant: int) -> None:
    x, z, hem = figure.x, figure.z, 0.3 * figure.size
    skirt = [
        (x - figure.waist, figure.hip + 0.1, z),
        (x + figure.waist, figure.hip + 0.1, z),
        (x + hem, 0.3 * figure.height, z),
        (x - hem, 0.3 * figure.height, z),
    ]
    builder.add([skirt], figure.category, Material.CLOTH, variant=variant)


def _add_arms(builder: Builder, figure: _Figure, variant: int) -> None:
    """Add both arms; the torso, added after them, covers their upper ends."""
    swing = figure.stride * 0.7
    arms = [
        bar(
            (figure.x + sign * figure.shoulder, 0.79 * figure.height),
            (figure.x + sign * (figure.shoulder + 0.06 + swing * 0.6), 0.47 * figure.height),
            figure.z,
            0.12 * figure.size,
        )
        for sign in (-1.0, 1.0)
    ]
    builder.add(arms, figure.category, Material.CLOTH, variant=variant, tone=0.8)


def _add_torso(builder: Builder, figure: _Figure, variant: int) -> None:
    x, z, height = figure.x, figure.z, figure.height
    torso = [
        (x - figure.waist, 0.47 * height, z),
        (x + figure.waist, 0.47 * height, z),
        (x + figure.shoulder, 0.78 * height, z),
        (x + 0.5 * figure.shoulder, 0.84 * height, z),
        (x - 0.5 * figure.shoulder, 0.84 * height, z),
        (x - figure.shoulder, 0.78 * height, z),
    ]
    builder.add([torso], figure.category, Material.CLOTH, variant=variant)


def _add_head(builder: Builder, figure: _Figure, skin: int, hair: int) -> None:
    x, z, height = figure.x, figure.z, figure.height
    face = disc(x, 0.915 * height, z, 0.125 * figure.size)
    builder.add([face], figure.category, Material.SKIN, variant=skin)
    top = [
        (x - 0.13 * figure.size, 0.93 * height, z),
        (x + 0.13 * figure.size, 0.93 * height, z),
        (x + 0.09 * figure.size, height, z),
        (x - 0.09 * figure.size, height, z),
    ]
    builder.add([top], figure.category, Material.HAIR, variant=hair)


def _add_bag(builder: Builder, rng: np.random.Generator, figure: _Figure, variant: int) -> None:
    side = figure.shoulder if rng.random() < 0.5 else -figure.shoulder
    left = figure.x + side
    bag = upright(left - 0.1, left + 0.16, 0.45 * figure.height, 0.62 * figure.height, figure.z)
    builder.add([bag], figure.category, Material.AWNING, variant=variant)
