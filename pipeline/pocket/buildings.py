"""Buildings in perspective: a street front and an end wall with windows, doors, shops, roofs."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.pocket.geometry import Builder, Category, Facing, Point, Ring
from pipeline.pocket.materials import Material


@dataclass(frozen=True)
class House:
    """Footprint and style of a building; x is its street front, depth_m goes away from it."""

    x: float
    z0: float
    z1: float
    height: float
    depth_m: float
    shop: bool
    gable: bool


def _grid(
    surface: Callable[[float, float], Point],
    length: float,
    height: float,
    floors: tuple[float, int],
) -> list[Ring]:
    """Return window rectangles on a face; floors is (height of the first sill, count)."""
    base, count = floors
    columns = max(1, min(7, round(length / 2.6)))
    pitch = length / columns
    floor = (height - base - 0.4) / count
    sides = [
        [surface((column + share) * pitch, 0.0) for share in (0.25, 0.75)]
        for column in range(columns)
    ]
    rings = []
    for row in range(count):
        y0 = base + (row + 0.18) * floor
        y1 = base + (row + 0.8) * floor
        rings += [
            [(x0, y0, z0), (x1, y0, z1), (x1, y1, z1), (x0, y1, z0)]
            for (x0, _, z0), (x1, _, z1) in sides
        ]
    return rings


def add_building(builder: Builder, rng: np.random.Generator, house: House) -> None:
    """Add a building beside the street."""
    builder.at(house.z1)
    outward = 1.0 if house.x > 0.0 else -1.0
    x, z0, z1, height = house.x, house.z0, house.z1, house.height
    facing = Facing.LEFT if outward > 0.0 else Facing.RIGHT
    variant = int(rng.integers(0, 240))
    tone = float(rng.uniform(0.86, 1.1))
    depth = 0.55 * z0 + 0.45 * z1
    far_x = x + outward * house.depth_m

    def front(a: float, y: float) -> Point:
        return (x, y, z0 + a)

    def end(a: float, y: float) -> Point:
        return (x + outward * a, y, z0)

    # Roof behind the walls, so that only what rises above them shows.
    if house.gable:
        ridge = height + 0.32 * house.depth_m
        middle = x + outward * 0.5 * house.depth_m
        eave = x - outward * 0.4
        builder.add(
            [
                [
                    (eave, height - 0.1, z0 - 0.3),
                    (eave, height - 0.1, z1 + 0.3),
                    (middle, ridge, z1),
                    (middle, ridge, z0 - 0.3),
                ]
            ],
            Category.BUILDING,
            Material.ROOF,
            variant=variant,
            facing=Facing.UP,
            depth=depth,
        )
        builder.add(
            [[(x, height, z0), (far_x, height, z0), (middle, ridge, z0)]],
            Category.BUILDING,
            Material.FACADE,
            variant=variant,
            tone=tone * 0.95,
            depth=z0,
        )
    for surface, length, side, own_depth in (
        (end, house.depth_m, Facing.CAMERA, z0),
        (front, z1 - z0, facing, depth),
    ):
        wall = [
            surface(0.0, 0.0),
            surface(length, 0.0),
            surface(length, height),
            surface(0.0, height),
        ]
        builder.add(
            [wall],
            Category.BUILDING,
            Material.FACADE,
            variant=variant,
            tone=tone,
            facing=side,
            depth=own_depth,
        )
        if not house.gable:
            cornice = [
                surface(0.0, height - 0.5),
                surface(length, height - 0.5),
                surface(length, height),
                surface(0.0, height),
            ]
            builder.add(
                [cornice],
                Category.BUILDING,
                Material.TRIM,
                variant=variant // 3,
                facing=side,
                depth=own_depth,
            )
        if builder.view.span(3.0, z0) < 0.035:
            continue
        _windows(builder, rng, surface, length, house, side, own_depth)
    if house.shop:
        _shopfront(builder, rng, house, front, facing, depth)
    elif builder.view.span(2.0, z0) > 0.05:
        at = (z1 - z0) * float(rng.uniform(0.3, 0.6))
        builder.add(
            [[front(at, 0.0), front(at + 1.2, 0.0), front(at + 1.2, 2.2), front(at, 2.2)]],
            Category.BUILDING,
            Material.DOOR,
            variant=variant,
            facing=facing,
            depth=depth,
        )


def _windows(
    builder: Builder,
    rng: np.random.Generator,
    surface: Callable[[float, float], Point],
    length: float,
    house: House,
    facing: Facing,
    depth: float,
) -> None:
    base = 3.4 if house.shop else 0.7
    count = max(1, min(7, round((house.height - base) / 3.0)))
    rings = _grid(surface, length, house.height - 0.4, (base, count))
    lit = rng.random(len(rings)) < 0.45
    tint = int(rng.integers(0, 6))
    for material, chosen in ((Material.WINDOW, ~lit), (Material.WINDOW_LIT, lit)):
        picked = [ring for ring, use in zip(rings, chosen.tolist(), strict=True) if use]
        if picked:
            builder.add(
                picked, Category.BUILDING, material, variant=tint, facing=facing, depth=depth
            )


def _shopfront(
    builder: Builder,
    rng: np.random.Generator,
    house: House,
    front: Callable[[float, float], Point],
    facing: Facing,
    depth: float,
) -> None:
    length = house.z1 - house.z0
    panes = []
    num = max(1, round(length / 4.0))
    pitch = length / num
    for i in range(num):
        a0, a1 = (i + 0.1) * pitch, (i + 0.9) * pitch
        panes.append([front(a0, 0.4), front(a1, 0.4), front(a1, 2.4), front(a0, 2.4)])
    builder.add(
        panes,
        Category.BUILDING,
        Material.SHOP_GLASS,
        variant=int(rng.integers(0, 4)),
        facing=facing,
        depth=depth,
    )
    outward = 1.0 if house.x > 0.0 else -1.0
    a0, a1 = 0.05 * length, 0.95 * length
    overhang = house.x - outward * 0.9
    board = [
        front(a0, 3.1),
        front(a1, 3.1),
        (overhang, 2.5, house.z0 + a1),
        (overhang, 2.5, house.z0 + a0),
    ]
    builder.add(
        [board],
        Category.BUILDING,
        Material.AWNING,
        variant=int(rng.integers(0, 240)),
        facing=Facing.UP,
        depth=depth,
    )


def add_skyline(builder: Builder, rng: np.random.Generator, *, towers: bool) -> None:
    """Close the horizon: hills, a line of trees and, in a city, distant blocks."""
    view = builder.view
    builder.at(600.0)
    if rng.random() < 0.45:
        xs = np.linspace(-1.0, 1.0, 15)
        heights = 0.035 + 0.05 * rng.random() * (1.0 + np.sin(xs * 4.0 + rng.uniform(0, 6)))
        heights = heights + 0.012 * rng.random(15)
        ridge = [
            view.on_screen(0.5 + x, view.horizon - h)
            for x, h in zip(xs.tolist(), heights.tolist(), strict=True)
        ]
        foot = [view.on_screen(1.6, view.horizon + 0.01), view.on_screen(-0.6, view.horizon + 0.01)]
        builder.add(
            [ridge + foot],
            Category.VEGETATION,
            Material.HILL,
            variant=int(rng.integers(0, 2)),
            facing=Facing.UP,
            depth=260.0,
        )
    builder.at(500.0)
    u = -0.1
    while u < 1.1:
        width = float(rng.uniform(0.025, 0.08))
        tower = towers and rng.random() < 0.75
        high = float(rng.uniform(0.03, 0.14 if tower else 0.05))
        corners = [
            view.on_screen(a, b)
            for a, b in (
                (u, view.horizon + 0.01),
                (u, view.horizon - high),
                (u + width * 1.05, view.horizon - high * (1.0 if tower else 0.7)),
                (u + width * 1.05, view.horizon + 0.01),
            )
        ]
        if tower:
            builder.add(
                [corners],
                Category.BUILDING,
                Material.FACADE,
                variant=int(rng.integers(0, 240)),
                tone=0.9,
                depth=160.0,
            )
        else:
            middle = view.on_screen(u + 0.5 * width, view.horizon - high * 1.2)
            corners.insert(2, middle)
            builder.add(
                [corners],
                Category.VEGETATION,
                Material.FOLIAGE,
                variant=int(rng.integers(0, 240)),
                tone=0.9,
                depth=140.0,
            )
        u += width
