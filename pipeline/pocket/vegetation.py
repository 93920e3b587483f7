"""Trees and bushes."""

import math
from collections.abc import Sequence
from typing import cast

import numpy as np

from pipeline.pocket.geometry import Builder, Category, Facing, Ring
from pipeline.pocket.materials import Material

CROWN_ANGLES = np.arange(26) * (2.0 * math.pi / 26)
CROWN_COS, CROWN_SIN = np.cos(CROWN_ANGLES), np.sin(CROWN_ANGLES)
# Parts of a crown, back to front: material, offset (x, y) and scale in radii, facing.
CROWN_LAYERS = (
    (Material.FOLIAGE_DARK, 0.0, 0.0, 1.0, Facing.CAMERA),
    (Material.FOLIAGE, -0.08, 0.12, 0.82, Facing.CAMERA),
    (Material.FOLIAGE, 0.38, 0.02, 0.42, Facing.CAMERA),
    (Material.FOLIAGE_LIGHT, -0.3, 0.42, 0.44, Facing.UP),
    (Material.FOLIAGE_LIGHT, 0.3, 0.36, 0.3, Facing.UP),
)
CROWN_LAYERS_FAR_AWAY = (CROWN_LAYERS[0], CROWN_LAYERS[3], CROWN_LAYERS[1])


def _crowns(
    rng: np.random.Generator, z: float, ellipses: Sequence[tuple[float, float, float, float]]
) -> list[Ring]:
    """Return irregular, lobed outlines for ellipses (x, y, radius across, radius upwards)."""
    count = len(CROWN_ANGLES)
    samples = [
        (rng.integers(3, 6), rng.uniform(0, 6), rng.uniform(0, 6), *rng.uniform(-0.07, 0.07, count))
        for _ in ellipses
    ]
    lobes, first, second, rough = np.split(np.array(samples), (1, 2, 3), axis=1)
    radii = 1.0 + 0.11 * np.sin(CROWN_ANGLES * lobes + first)
    radii += 0.07 * np.abs(np.sin(CROWN_ANGLES * 4.5 + second))
    radii = radii * (0.97 + rough)
    x, y, radius_x, radius_y = np.array(ellipses).T[..., None]
    outlines = np.full((len(ellipses), count, 3), z)
    outlines[..., 0] = x + radius_x * radii * CROWN_COS
    outlines[..., 1] = np.maximum(y + radius_y * radii * CROWN_SIN, 0.0)
    return cast("list[Ring]", outlines.tolist())  # lists in place of tuples


def add_tree(builder: Builder, rng: np.random.Generator, x: float, z: float, size: float) -> None:
    """Add a broad-leaved tree or a conifer about `size` metres high (class vegetation)."""
    builder.at(z)
    variant = int(rng.integers(0, 240))
    conifer = rng.random() < 0.16
    branch_y = (0.16 if conifer else 0.36) * size
    _add_trunk(builder, x, z, 0.045 * size, branch_y * 1.3, variant)
    if conifer:
        _add_conifer_tiers(builder, x, z, branch_y, size)
    else:
        _add_crown(builder, rng, x, z, branch_y, size, variant)


def _add_trunk(
    builder: Builder, x: float, z: float, half: float, height: float, variant: int
) -> None:
    trunk = [
        (x - 1.3 * half, 0.0, z),
        (x + 1.3 * half, 0.0, z),
        (x + 0.7 * half, height, z),
        (x - 0.7 * half, height, z),
    ]
    builder.add([trunk], Category.VEGETATION, Material.BARK, variant=variant)


def _add_conifer_tiers(builder: Builder, x: float, z: float, branch_y: float, size: float) -> None:
    """Add four triangles, each with a lighter left half."""
    tiers = 4
    for i in range(tiers):
        low = branch_y + (size - branch_y) * i / (tiers + 0.6)
        high = min(size, low + (size - branch_y) * 0.44)
        half = size * 0.24 * (1.0 - i / (tiers + 0.5))
        tone = 0.85 + 0.1 * i
        builder.add(
            [[(x - half, low, z), (x + half, low, z), (x, high, z)]],
            Category.VEGETATION,
            Material.FOLIAGE_DARK,
            variant=2,
            tone=tone * 1.25,
        )
        builder.add(
            [[(x - half, low, z), (x - half * 0.1, low + 0.1, z), (x, high, z)]],
            Category.VEGETATION,
            Material.FOLIAGE,
            variant=2,
            tone=tone,
            facing=Facing.UP,
        )


def _add_crown(
    builder: Builder,
    rng: np.random.Generator,
    x: float,
    z: float,
    branch_y: float,
    size: float,
    variant: int,
) -> None:
    """Add the crown of a broad-leaved tree: dark at the back, light where the sun falls."""
    radius_y = 0.5 * (size - branch_y * 0.9)
    radius_x = radius_y * float(rng.uniform(0.75, 1.15))
    y = size - radius_y
    far_away = builder.view.span(size, z) < 0.12
    layers = CROWN_LAYERS_FAR_AWAY if far_away else CROWN_LAYERS
    ellipses = [
        (x + dx * radius_x, y + dy * radius_y, scale * radius_x, scale * radius_y)
        for _, dx, dy, scale, _ in layers
    ]
    for (material, *_, facing), ring in zip(layers, _crowns(rng, z, ellipses), strict=True):
        builder.add([ring], Category.VEGETATION, material, variant=variant, facing=facing)


def add_bush(builder: Builder, rng: np.random.Generator, x: float, z: float, size: float) -> None:
    """Add a bush of `size` metres (class vegetation)."""
    builder.at(z)
    variant = int(rng.integers(0, 240))
    shapes = ((0.4, 1.0), (0.55, 0.75))
    ellipses = [(x, dy * size, scale * size * 0.8, scale * size * 0.55) for dy, scale in shapes]
    materials = (Material.FOLIAGE_DARK, Material.FOLIAGE)
    for material, ring in zip(materials, _crowns(rng, z, ellipses), strict=True):
        builder.add([ring], Category.VEGETATION, material, variant=variant)
