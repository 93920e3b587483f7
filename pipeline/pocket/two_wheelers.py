"""Bicycles, motorcycles and their riders."""

import math

import numpy as np

from pipeline.pocket.geometry import Builder, Category, Facing, Point, Ring, bar, disc, upright
from pipeline.pocket.materials import Material

# Tank and seat of a motorcycle, (along, up) in metres.
_TANK = [
    (-0.85, 0.72),
    (-0.3, 0.56),
    (0.3, 0.56),
    (0.5, 0.8),
    (0.38, 1.02),
    (0.0, 0.98),
    (-0.3, 0.84),
    (-0.85, 0.9),
]


def _add_ground_shadow(builder: Builder, x: float, z: float, half: float) -> None:
    ring = [
        (x - half, 0.0, z),
        (x + half, 0.0, z - 0.12),
        (x + half * 1.2, 0.0, z + 0.3),
        (x - half * 0.8, 0.0, z + 0.35),
    ]
    builder.add([ring], Category.ROAD, Material.SHADOW, facing=Facing.UP, depth=0.0)


class _Plane:
    """The vertical plane of a two-wheeler: (along, up) to the world."""

    def __init__(self, x: float, z: float, angle: float) -> None:
        self.x, self.z = x, z
        self.cos, self.sin = math.cos(angle), math.sin(angle)

    def point(self, along: float, up: float) -> Point:
        return (self.x + along * self.cos, up, self.z + along * self.sin)

    def wheel(self, along: float, radius: float, inner: float) -> list[Ring]:
        rings = []
        for r in (radius, inner):
            if r > 0.0:
                angles = [2.0 * math.pi * i / 14 for i in range(14)]
                rings.append(
                    [self.point(along + r * math.cos(a), radius + r * math.sin(a)) for a in angles]
                )
        return rings

    def strip(self, start: tuple[float, float], stop: tuple[float, float], width: float) -> Ring:
        return [self.point(p[0], p[1]) for p in bar(start, stop, 0.0, width)]

    def polygon(self, corners: list[tuple[float, float]]) -> Ring:
        return [self.point(*corner) for corner in corners]


def _angle(rng: np.random.Generator, heading: str) -> float:
    if heading == "cross":
        return float(rng.choice([0.0, math.pi])) + float(rng.uniform(-0.25, 0.25))
    return float(rng.choice([-1.0, 1.0])) * float(rng.uniform(0.75, 1.25))


def _add_rider(builder: Builder, rng: np.random.Generator, plane: _Plane, lift: float) -> None:
    """Add the person on a two-wheeler whose saddle is `lift` metres above the usual 0.9 m."""
    top, legs, skin, helmet = (int(value) for value in rng.integers(0, 240, 4))
    category = Category.RIDER
    leg_a = plane.strip((-0.2, 0.98 + lift), (0.18, 0.66), 0.19)
    shin = plane.strip((0.18, 0.7), (0.02, 0.2), 0.15)
    builder.add([leg_a], category, Material.TROUSERS, variant=legs)
    builder.add([shin], category, Material.TROUSERS, variant=legs, tone=0.9)
    # A torso that leans forward, widened so that it also reads from behind.
    z, x = plane.z, plane.x
    lean = 0.25 * plane.cos
    back = -0.2 * plane.cos
    torso = [
        (x + back - 0.17, 0.9 + lift, z),
        (x + back + 0.17, 0.9 + lift, z),
        (x + lean * 0.4 + 0.22, 1.42 + lift, z),
        (x + lean * 0.4 - 0.22, 1.42 + lift, z),
    ]
    builder.add([torso], category, Material.CLOTH, variant=top)
    arm = bar((x + lean * 0.4, 1.36 + lift), (x + 0.5 * plane.cos, 1.02 + lift), z, 0.12)
    builder.add([arm], category, Material.CLOTH, variant=top, tone=0.75)
    head = (x + lean * 0.7, 1.6 + lift)
    builder.add([disc(*head, z, 0.14)], category, Material.SKIN, variant=skin)
    builder.add(
        [
            [
                (head[0] - 0.15, head[1] + 0.02, z),
                (head[0] + 0.15, head[1] + 0.02, z),
                (head[0] + 0.1, head[1] + 0.16, z),
                (head[0] - 0.1, head[1] + 0.16, z),
            ]
        ],
        category,
        Material.AWNING,
        variant=helmet,
    )


def add_bicycle(
    builder: Builder, rng: np.random.Generator, x: float, z: float, heading: str, *, ridden: bool
) -> None:
    """Add a bicycle; heading "cross" shows its side, "along" a narrow oblique view."""
    builder.at(z)
    plane = _Plane(x, z, _angle(rng, heading))
    variant = int(rng.integers(0, 240))
    category = Category.BICYCLE
    _add_ground_shadow(builder, x, z, 0.7 * abs(plane.cos) + 0.1)
    for along in (-0.54, 0.54):
        builder.add(plane.wheel(along, 0.36, 0.26), category, Material.TYRE)
    frame = [
        ((-0.54, 0.36), (-0.16, 0.86)),
        ((-0.16, 0.8), (0.42, 0.86)),
        ((-0.1, 0.4), (0.42, 0.8)),
        ((0.54, 0.36), (0.4, 1.0)),
        ((-0.1, 0.4), (-0.18, 0.9)),
        ((-0.54, 0.36), (-0.1, 0.36)),
    ]
    for start, stop in frame:
        builder.add([plane.strip(start, stop, 0.085)], category, Material.BIKE, variant=variant)
    builder.add([plane.strip((-0.3, 0.93), (-0.05, 0.93), 0.1)], category, Material.TYRE)
    builder.add([plane.strip((0.3, 1.02), (0.52, 1.04), 0.08)], category, Material.TYRE)
    if ridden:
        _add_rider(builder, rng, plane, 0.0)


def add_motorcycle(
    builder: Builder, rng: np.random.Generator, x: float, z: float, heading: str, *, ridden: bool
) -> None:
    """Add a motorcycle or scooter."""
    builder.at(z)
    plane = _Plane(x, z, _angle(rng, heading))
    variant = int(rng.integers(0, 240))
    _add_ground_shadow(builder, x, z, 0.8 * abs(plane.cos) + 0.15)
    _add_motorcycle_wheels(builder, plane)
    _add_motorcycle_body(builder, plane, variant + 2)
    away = heading == "along" and rng.random() < 0.5
    _add_motorcycle_lamp(builder, plane, Material.TAILLIGHT if away else Material.HEADLIGHT)
    if ridden:
        _add_rider(builder, rng, plane, -0.06)


def _add_motorcycle_wheels(builder: Builder, plane: _Plane) -> None:
    for along in (-0.62, 0.66):
        builder.add(plane.wheel(along, 0.33, 0.0), Category.MOTORCYCLE, Material.TYRE)
        hub = [
            plane.point(along + 0.15 * math.cos(a), 0.33 + 0.15 * math.sin(a))
            for a in [math.pi * i / 4 for i in range(8)]
        ]
        builder.add([hub], Category.MOTORCYCLE, Material.HUB)


def _add_motorcycle_body(builder: Builder, plane: _Plane, paint: int) -> None:
    """Add engine, tank and seat, fork and fairing."""
    category = Category.MOTORCYCLE
    engine = plane.polygon([(-0.4, 0.3), (0.35, 0.28), (0.45, 0.6), (-0.45, 0.6)])
    builder.add([engine], category, Material.METAL, tone=0.7)
    builder.add([plane.polygon(_TANK)], category, Material.CAR_PAINT, variant=paint)
    builder.add([plane.strip((-0.7, 0.9), (-0.02, 0.9), 0.14)], category, Material.TYRE)
    builder.add([plane.strip((0.66, 0.33), (0.42, 1.05), 0.12)], category, Material.METAL)
    fairing = plane.polygon([(0.4, 0.82), (0.62, 0.86), (0.56, 1.12), (0.36, 1.2)])
    builder.add([fairing], category, Material.CAR_PAINT, variant=paint, tone=0.9)
    # Seen obliquely the motorcycle still has width: a body that faces the camera.
    body = upright(plane.x - 0.2, plane.x + 0.2, 0.5, 0.8, plane.z)
    builder.add([body], category, Material.CAR_PAINT, variant=paint, tone=0.85)


def _add_motorcycle_lamp(builder: Builder, plane: _Plane, lamp: Material) -> None:
    end = plane.point(0.6, 0.9) if abs(plane.cos) > 0.8 else (plane.x, 0.85, plane.z)
    builder.add([disc(*end, 0.1, 8)], Category.MOTORCYCLE, lamp)
    builder.light(end, lamp)
