"""Buildings in perspective: a street front and an end wall with windows, doors, shops, roofs."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.pocket.geometry import Builder, Category, Facing, Point, Ring
from pipeline.pocket.materials import Material


@dataclass(frozen=True)
class _Face:
    """A vertical side of a building; `point` maps metres (along, up) on it to the world."""

    point: Callable[[float, float], Point]
    length: float
    facing: Facing
    depth: float

    def rectangle(self, a0: float, a1: float, y0: float, y1: float) -> Ring:
        """Return an upright rectangle on the face."""
        return [self.point(a0, y0), self.point(a1, y0), self.point(a1, y1), self.point(a0, y1)]


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

    @property
    def outward(self) -> float:
        """Direction away from the street: 1 on its right side, -1 on its left."""
        return 1.0 if self.x > 0.0 else -1.0

    @property
    def front(self) -> _Face:
        """The side along the street."""
        facing = Facing.LEFT if self.x > 0.0 else Facing.RIGHT
        depth = 0.55 * self.z0 + 0.45 * self.z1
        return _Face(lambda a, y: (self.x, y, self.z0 + a), self.z1 - self.z0, facing, depth=depth)

    @property
    def end(self) -> _Face:
        """The side that faces the camera."""
        return _Face(
            lambda a, y: (self.x + self.outward * a, y, self.z0),
            self.depth_m,
            Facing.CAMERA,
            depth=self.z0,
        )


def add_building(builder: Builder, rng: np.random.Generator, house: House) -> None:
    """Add a building beside the street."""
    builder.at(house.z1)
    variant = int(rng.integers(0, 240))
    tone = float(rng.uniform(0.86, 1.1))
    if house.gable:
        # Behind the walls, so that only what rises above them shows.
        _add_gable_roof(builder, house, variant, tone)
    for face in (house.end, house.front):
        _add_wall(builder, house, face, variant, tone)
        if builder.view.span(3.0, house.z0) >= 0.035:
            _add_windows(builder, rng, house, face)
    if house.shop:
        _add_shopfront(builder, rng, house)
    elif builder.view.span(2.0, house.z0) > 0.05:
        _add_door(builder, rng, house, variant)


def _add_gable_roof(builder: Builder, house: House, variant: int, tone: float) -> None:
    """Add the slope above the street and the triangle of the end wall."""
    x, z0, z1, height = house.x, house.z0, house.z1, house.height
    ridge = height + 0.32 * house.depth_m
    middle = x + house.outward * 0.5 * house.depth_m
    eave = x - house.outward * 0.4
    far_x = x + house.outward * house.depth_m
    slope = [
        (eave, height - 0.1, z0 - 0.3),
        (eave, height - 0.1, z1 + 0.3),
        (middle, ridge, z1),
        (middle, ridge, z0 - 0.3),
    ]
    builder.add(
        [slope],
        Category.BUILDING,
        Material.ROOF,
        variant=variant,
        facing=Facing.UP,
        depth=house.front.depth,
    )
    builder.add(
        [[(x, height, z0), (far_x, height, z0), (middle, ridge, z0)]],
        Category.BUILDING,
        Material.FACADE,
        variant=variant,
        tone=tone * 0.95,
        depth=z0,
    )


def _add_wall(builder: Builder, house: House, face: _Face, variant: int, tone: float) -> None:
    """Add the wall of a face, with a cornice under a flat roof."""
    builder.add(
        [face.rectangle(0.0, face.length, 0.0, house.height)],
        Category.BUILDING,
        Material.FACADE,
        variant=variant,
        tone=tone,
        facing=face.facing,
        depth=face.depth,
    )
    if not house.gable:
        builder.add(
            [face.rectangle(0.0, face.length, house.height - 0.5, house.height)],
            Category.BUILDING,
            Material.TRIM,
            variant=variant // 3,
            facing=face.facing,
            depth=face.depth,
        )


def _add_windows(builder: Builder, rng: np.random.Generator, house: House, face: _Face) -> None:
    """Add the windows of a face, about half of them lit."""
    base = 3.4 if house.shop else 0.7
    floors = max(1, min(7, round((house.height - base) / 3.0)))
    rings = _window_grid(face, house.height - 0.4, base, floors)
    lit = rng.random(len(rings)) < 0.45
    tint = int(rng.integers(0, 6))
    for material, chosen in ((Material.WINDOW, ~lit), (Material.WINDOW_LIT, lit)):
        picked = [ring for ring, use in zip(rings, chosen.tolist(), strict=True) if use]
        if picked:
            builder.add(
                picked,
                Category.BUILDING,
                material,
                variant=tint,
                facing=face.facing,
                depth=face.depth,
            )


def _window_grid(face: _Face, height: float, base: float, floors: int) -> list[Ring]:
    """Return window rectangles below `height`; `base` is the height of the first sill."""
    columns = max(1, min(7, round(face.length / 2.6)))
    pitch = face.length / columns
    floor = (height - base - 0.4) / floors
    sides = [
        [face.point((column + share) * pitch, 0.0) for share in (0.25, 0.75)]
        for column in range(columns)
    ]
    rings = []
    for row in range(floors):
        y0 = base + (row + 0.18) * floor
        y1 = base + (row + 0.8) * floor
        rings += [
            [(x0, y0, z0), (x1, y0, z1), (x1, y1, z1), (x0, y1, z0)]
            for (x0, _, z0), (x1, _, z1) in sides
        ]
    return rings


def _add_door(builder: Builder, rng: np.random.Generator, house: House, variant: int) -> None:
    """Add a door near the middle of the street front."""
    front = house.front
    at = front.length * float(rng.uniform(0.3, 0.6))
    builder.add(
        [front.rectangle(at, at + 1.2, 0.0, 2.2)],
        Category.BUILDING,
        Material.DOOR,
        variant=variant,
        facing=front.facing,
        depth=front.depth,
    )


def _add_shopfront(builder: Builder, rng: np.random.Generator, house: House) -> None:
    """Add shop windows along the street front, and the awning above them."""
    front = house.front
    num_panes = max(1, round(front.length / 4.0))
    pitch = front.length / num_panes
    builder.add(
        [front.rectangle((i + 0.1) * pitch, (i + 0.9) * pitch, 0.4, 2.4) for i in range(num_panes)],
        Category.BUILDING,
        Material.SHOP_GLASS,
        variant=int(rng.integers(0, 4)),
        facing=front.facing,
        depth=front.depth,
    )
    a0, a1 = 0.05 * front.length, 0.95 * front.length
    overhang = house.x - house.outward * 0.9
    awning = [
        front.point(a0, 3.1),
        front.point(a1, 3.1),
        (overhang, 2.5, house.z0 + a1),
        (overhang, 2.5, house.z0 + a0),
    ]
    builder.add(
        [awning],
        Category.BUILDING,
        Material.AWNING,
        variant=int(rng.integers(0, 240)),
        facing=Facing.UP,
        depth=front.depth,
    )


def add_skyline(builder: Builder, rng: np.random.Generator, *, towers: bool) -> None:
    """Close the horizon: hills, a line of trees and, in a city, distant blocks."""
    builder.at(600.0)
    if rng.random() < 0.45:
        _add_hills(builder, rng)
    builder.at(500.0)
    u = -0.1
    while u < 1.1:
        width = float(rng.uniform(0.025, 0.08))
        if towers and rng.random() < 0.75:
            _add_distant_block(builder, rng, u, width)
        else:
            _add_distant_trees(builder, rng, u, width)
        u += width


def _add_hills(builder: Builder, rng: np.random.Generator) -> None:
    view = builder.view
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


def _add_distant_block(builder: Builder, rng: np.random.Generator, u: float, width: float) -> None:
    """Add a block between the image columns u and u + 1.05 width."""
    view = builder.view
    high = float(rng.uniform(0.03, 0.14))
    corners = (
        (u, view.horizon + 0.01),
        (u, view.horizon - high),
        (u + width * 1.05, view.horizon - high),
        (u + width * 1.05, view.horizon + 0.01),
    )
    builder.add(
        [[view.on_screen(*corner) for corner in corners]],
        Category.BUILDING,
        Material.FACADE,
        variant=int(rng.integers(0, 240)),
        tone=0.9,
        depth=160.0,
    )


def _add_distant_trees(builder: Builder, rng: np.random.Generator, u: float, width: float) -> None:
    """Add trees between the image columns u and u + 1.05 width."""
    view = builder.view
    high = float(rng.uniform(0.03, 0.05))
    corners = (
        (u, view.horizon + 0.01),
        (u, view.horizon - high),
        (u + 0.5 * width, view.horizon - high * 1.2),
        (u + width * 1.05, view.horizon - high * 0.7),
        (u + width * 1.05, view.horizon + 0.01),
    )
    builder.add(
        [[view.on_screen(*corner) for corner in corners]],
        Category.VEGETATION,
        Material.FOLIAGE,
        variant=int(rng.integers(0, 240)),
        tone=0.9,
        depth=140.0,
    )
