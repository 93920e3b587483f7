"""Cars, vans, trucks, buses, trams and two-wheelers as extruded boxes with visible details."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.pocket.geometry import Builder, Category, Facing, Point, Ring
from pipeline.pocket.materials import Material

Local = tuple[float, float, float]


@dataclass(frozen=True)
class Pose:
    """Where a vehicle stands: near-left reference x, near end z, and its heading.

    heading: "away" (we see the rear), "oncoming" (front), "left" or "right" (we see the side).
    """

    x: float
    z: float
    heading: str

    def placer(self, length: float) -> Callable[[Local], Point]:
        """Return the map from (along, up, across) to the world; along 0 is the end we see."""
        if self.heading in ("away", "oncoming"):
            return lambda p: (self.x + p[2], p[1], self.z + p[0])
        sign = 1.0 if self.heading == "left" else -1.0
        return lambda p: (self.x + sign * (p[0] - 0.5 * length), p[1], self.z + 1.0 + p[2])

    @property
    def crosswise(self) -> bool:
        """Whether the vehicle drives across the view."""
        return self.heading in ("left", "right")


def _circle(along: float, up: float, across: float, radius: float, sides: int = 10) -> list[Local]:
    angles = [2.0 * math.pi * i / sides for i in range(sides)]
    return [(along + radius * math.cos(a), up + radius * math.sin(a), across) for a in angles]


class _Painter:
    """Adds faces of one vehicle given in local coordinates."""

    def __init__(self, builder: Builder, pose: Pose, length: float, class_id: Category) -> None:
        self.builder, self.pose, self.class_id = builder, pose, class_id
        self.place = pose.placer(length)
        self.detail = builder.view.span(1.5, pose.z) > 0.045
        # The flank we see: the one towards the optical axis, or the near one when crossing.
        self.flank = -1.0 if (pose.crosswise or pose.x > 0.0) else 1.0
        side = Facing.LEFT if pose.x > 0.0 else Facing.RIGHT
        self.side_facing = Facing.CAMERA if pose.crosswise else side
        self.end_facing = Facing.LEFT if pose.heading == "left" else Facing.RIGHT
        if not pose.crosswise:
            self.end_facing = Facing.CAMERA

    def ring(self, points: list[Local]) -> Ring:
        return [self.place(p) for p in points]

    def face(
        self,
        shapes: list[list[Local]],
        material: Material,
        facing: Facing,
        *,
        variant: int = 0,
        tone: float = 1.0,
        class_id: Category | None = None,
    ) -> None:
        self.builder.add(
            [self.ring(shape) for shape in shapes],
            self.class_id if class_id is None else class_id,
            material, variant=variant, tone=tone, facing=facing, depth=self.pose.z,
        )

    def shadow(self, length: float, half: float) -> None:
        shape = [(-0.25, 0.0, -half - 0.2), (-0.25, 0.0, half + 0.2),
                 (length + 0.3, 0.0, half + 0.2), (length + 0.3, 0.0, -half - 0.2)]
        self.builder.add([self.ring(shape)], Category.ROAD, Material.SHADOW, facing=Facing.UP,
                         depth=0.0)

    def wheels(self, positions: tuple[float, ...], half: float, radius: float) -> None:
        across = self.flank * half
        self.face([_circle(a, radius, across, radius, 12) for a in positions],
                  Material.TYRE, self.side_facing)
        if self.detail:
            self.face([_circle(a, radius, across, 0.58 * radius, 8) for a in positions],
                      Material.HUB, self.side_facing)

    def lamps(self, half: float, y0: float, y1: float, width: float) -> None:
        shapes = [
            [(0.0, y0, s * half), (0.0, y0, s * (half - width)), (0.0, y1, s * (half - width)),
             (0.0, y1, s * half)]
            for s in (-0.96, 0.96)
        ]
        front = self.pose.heading == "oncoming"
        material = Material.HEADLIGHT if front else Material.TAILLIGHT
        self.face(shapes, material, self.end_facing)
        for s in (-0.8, 0.8):
            self.builder.light(self.place((0.0, 0.5 * (y0 + y1), s * half)), material)


def _end(half0: float, half1: float, y0: float, y1: float, a0: float, a1: float) -> list[Local]:
    return [(a0, y0, -half0), (a0, y0, half0), (a1, y1, half1), (a1, y1, -half1)]


def add_car(builder: Builder, rng: np.random.Generator, pose: Pose) -> None:
    """Add a saloon, hatchback or van (class car)."""
    kind = int(rng.integers(0, 4))
    variant = int(rng.integers(0, 250))
    length, half = float(rng.uniform(3.9, 4.7)), float(rng.uniform(0.86, 0.96))
    deck = float(rng.uniform(0.86, 0.98))
    roof = deck + float(rng.uniform(0.48, 0.6)) + (0.4 if kind == 3 else 0.0)
    rear = pose.heading != "oncoming"
    boot = {0: 0.75, 1: 0.12, 2: 0.12, 3: 0.06}[kind] if rear else 0.95
    hood = 1.0 if rear else {0: 0.7, 1: 0.2, 2: 0.2, 3: 0.1}[kind]
    p = _Painter(builder, pose, length, Category.CAR)
    f, top = p.flank, 0.78 * half
    p.shadow(length, half)
    # Body shell: deck seen from above, flank, cabin.
    p.face([_end(half, half, deck, deck, 0.0, length)], Material.CAR_PAINT, Facing.UP,
           variant=variant, tone=1.12)
    p.face([[(0.05, 0.3, f * half), (0.0, deck - 0.1, f * half), (0.15, deck, f * half),
             (length - 0.2, deck - 0.02, f * half), (length, deck - 0.2, f * half),
             (length, 0.3, f * half)]],
           Material.CAR_PAINT, p.side_facing, variant=variant, tone=0.9)
    a0, a1 = boot + 0.5, length - hood - 0.65
    cabin = [(boot, deck, f * half * 0.97), (a0, roof, f * top), (a1, roof, f * top),
             (length - hood, deck, f * half * 0.97)]
    p.face([cabin], Material.CAR_PAINT, p.side_facing, variant=variant, tone=0.85)
    glass_y = roof - 0.1
    middle = 0.5 * (a0 + a1)
    panes = [
        [(boot + 0.22, deck + 0.03, f * half * 0.97), (a0 + 0.08, glass_y, f * top),
         (middle - 0.06, glass_y, f * top), (middle - 0.06, deck + 0.03, f * half * 0.97)],
        [(middle + 0.06, deck + 0.03, f * half * 0.97), (middle + 0.06, glass_y, f * top),
         (a1 - 0.05, glass_y, f * top), (length - hood - 0.2, deck + 0.03, f * half * 0.97)],
    ]
    p.face(panes, Material.CAR_GLASS, p.side_facing)
    p.wheels((0.78, length - 0.85), half, 0.33)
    if pose.crosswise:
        _crosswise_lamps(p, length, half, deck)
        return
    # The end that faces us.
    p.face([_end(top, top, roof, roof, a0, a1)], Material.CAR_PAINT, Facing.UP,
           variant=variant, tone=1.12)
    p.face([_end(0.97 * half, top, deck, roof, boot, a0)], Material.CAR_PAINT, Facing.CAMERA,
           variant=variant, tone=0.95)
    p.face([_end(0.86 * half, 0.9 * top, deck + 0.05, glass_y, boot, a0)], Material.CAR_GLASS,
           Facing.CAMERA, variant=1)
    tyres = [[(0.1, 0.0, s * half * 0.98), (0.1, 0.0, s * half * 0.7), (0.1, 0.4, s * half * 0.7),
              (0.1, 0.4, s * half * 0.98)] for s in (-1.0, 1.0)]
    p.face(tyres, Material.TYRE, Facing.CAMERA)
    p.face([[(0.0, 0.27, -half * 0.95), (0.0, 0.27, half * 0.95), (0.0, 0.6, half),
             (0.0, deck - 0.06, half * 0.97), (0.0, deck, half * 0.88), (0.0, deck, -half * 0.88),
             (0.0, deck - 0.06, -half * 0.97), (0.0, 0.6, -half)]],
           Material.CAR_PAINT, Facing.CAMERA, variant=variant)
    p.face([_end(half * 0.93, half * 0.95, 0.27, 0.4, 0.0, 0.0)], Material.TYRE, Facing.CAMERA,
           tone=1.6)
    if p.detail:
        grille = Material.PLATE if rear else Material.TYRE
        p.face([_end(0.26, 0.26, 0.5, 0.62, 0.0, 0.0)], grille, Facing.CAMERA)
    p.lamps(half, deck - 0.3, deck - 0.1, 0.36)


def _crosswise_lamps(p: _Painter, length: float, half: float, deck: float) -> None:
    for along, material in ((0.0, Material.HEADLIGHT), (length - 0.22, Material.TAILLIGHT)):
        shape = [(along, deck - 0.32, p.flank * half), (along + 0.22, deck - 0.32, p.flank * half),
                 (along + 0.22, deck - 0.14, p.flank * half), (along, deck - 0.14, p.flank * half)]
        p.face([shape], material, p.side_facing)
        p.builder.light(p.place((along, deck - 0.2, p.flank * half)), material)


def _box(p: _Painter, material: Material, variant: int, size: tuple[float, ...]) -> None:
    """Add the three visible faces of a box; size is (along0, along1, y0, y1, half width)."""
    a0, a1, y0, y1, half = size
    f = p.flank
    p.face([_end(half, half, y1, y1, a0, a1)], material, Facing.UP, variant=variant, tone=1.1)
    p.face([[(a0, y0, f * half), (a0, y1, f * half), (a1, y1, f * half), (a1, y0, f * half)]],
           material, p.side_facing, variant=variant, tone=0.86)
    if p.pose.crosswise:
        end = a0 if (p.pose.x > 0.0) == (p.pose.heading == "left") else a1
    else:
        end = a0
    p.face([_end(half, half, y0, y1, end, end)], material, p.end_facing, variant=variant)


def _side_panes(
    p: _Painter, spans: list[tuple[float, float]], y0: float, y1: float, half: float
) -> list[list[Local]]:
    f = p.flank * half
    return [[(s, y0, f), (s, y1, f), (e, y1, f), (e, y0, f)] for s, e in spans]


def add_truck(builder: Builder, rng: np.random.Generator, pose: Pose) -> None:
    """Add a lorry with cab and cargo box (class truck)."""
    length, half = float(rng.uniform(6.5, 10.0)), float(rng.uniform(1.15, 1.28))
    height, variant = float(rng.uniform(2.9, 3.8)), int(rng.integers(0, 250))
    cab_variant = int(rng.integers(0, 250))
    p = _Painter(builder, pose, length, Category.TRUCK)
    rear = pose.heading == "away"
    cab = (length - 2.0, length) if rear else (0.0, 2.0)
    cargo = (0.0, length - 2.2) if rear else (2.2, length)
    p.shadow(length, half)
    boxes = [(Material.TRUCK_PAINT, variant, (*cargo, 0.95, height, half)),
             (Material.TRUCK_PAINT, cab_variant, (*cab, 0.55, min(height, 2.75), half * 0.96))]
    # The nearer box last: for a rear view that is the cargo.
    for material, tint, size in (boxes[::-1] if rear else boxes):
        _box(p, material, tint, size)
    _box(p, Material.TYRE, 0, (0.1, length - 0.2, 0.5, 0.95, half * 0.9))
    p.face(_side_panes(p, [(cab[0] + 0.5, cab[1] - 0.3)], 1.6, 2.45, half * 0.97),
           Material.CAR_GLASS, p.side_facing)
    p.face(_side_panes(p, [(cargo[0] + 0.5, cargo[1] - 0.5)], height * 0.5, height * 0.62, half),
           Material.AWNING, p.side_facing, variant=variant // 3)
    p.wheels((1.0, length - 2.9, length - 1.2), half, 0.5)
    if pose.crosswise:
        return
    tyres = [[(0.0, 0.0, s * half * 0.96), (0.0, 0.0, s * half * 0.55),
              (0.0, 0.8, s * half * 0.55), (0.0, 0.8, s * half * 0.96)] for s in (-1.0, 1.0)]
    p.face(tyres, Material.TYRE, Facing.CAMERA)
    if rear:
        seam = [(0.0, 1.0, -0.05), (0.0, 1.0, 0.05), (0.0, height, 0.05), (0.0, height, -0.05)]
        p.face([seam], Material.METAL, Facing.CAMERA)
        p.face([_end(half, half, 0.62, 0.95, 0.0, 0.0)], Material.METAL, Facing.CAMERA, tone=0.6)
        p.lamps(half, 0.66, 0.9, 0.4)
        return
    p.face([_end(0.88 * half, 0.84 * half, 1.5, 2.45, 0.0, 0.0)], Material.CAR_GLASS,
           Facing.CAMERA, variant=1)
    p.face([_end(0.6 * half, 0.6 * half, 0.85, 1.3, 0.0, 0.0)], Material.TYRE, Facing.CAMERA,
           tone=1.5)
    p.lamps(half, 0.7, 1.0, 0.4)


def add_bus(builder: Builder, rng: np.random.Generator, pose: Pose) -> None:
    """Add a city bus (class bus)."""
    length, half = float(rng.uniform(9.0, 12.0)), 1.27
    height, variant = float(rng.uniform(2.95, 3.2)), int(rng.integers(0, 250))
    p = _Painter(builder, pose, length, Category.BUS)
    p.shadow(length, half)
    _box(p, Material.BUS_PAINT, variant, (0.0, length, 0.35, height, half))
    num_panes = 6
    step = (length - 1.0) / num_panes
    spans = [(0.5 + i * step + 0.1, 0.5 + (i + 1) * step - 0.1) for i in range(num_panes)]
    p.face(_side_panes(p, spans, 1.35, 2.4, half), Material.CABIN_GLASS, p.side_facing)
    p.face(_side_panes(p, [(0.0, length)], 0.35, 0.6, half), Material.TYRE, p.side_facing, tone=2.0)
    p.wheels((2.0, length - 2.6), half, 0.5)
    if pose.crosswise:
        _crosswise_lamps(p, length, half, 1.0)
        return
    tyres = [[(0.0, 0.0, s * half * 0.96), (0.0, 0.0, s * half * 0.7), (0.0, 0.5, s * half * 0.7),
              (0.0, 0.5, s * half * 0.96)] for s in (-1.0, 1.0)]
    p.face(tyres, Material.TYRE, Facing.CAMERA)
    low = 1.1 if pose.heading == "oncoming" else 1.5
    p.face([_end(0.9 * half, 0.88 * half, low, 2.4, 0.0, 0.0)], Material.CAR_GLASS, Facing.CAMERA)
    p.face([_end(0.62 * half, 0.62 * half, 2.55, 2.85, 0.0, 0.0)], Material.TYRE, Facing.CAMERA)
    p.face([_end(0.4 * half, 0.4 * half, 2.62, 2.78, 0.0, 0.0)], Material.LAMP_AMBER,
           Facing.CAMERA)
    p.lamps(half, 0.6, 0.9, 0.4)


def add_tram(builder: Builder, rng: np.random.Generator, pose: Pose) -> None:
    """Add a tram on its rails (class train)."""
    length, half = float(rng.uniform(16.0, 26.0)), 1.28
    height, variant = 3.4, int(rng.integers(0, 250))
    p = _Painter(builder, pose, length, Category.TRAIN)
    p.shadow(length, half)
    _box(p, Material.TRAM_PAINT, variant, (0.0, length, 0.3, height, half))
    _box(p, Material.METAL, 0, (length * 0.15, length * 0.7, height, height + 0.35, half * 0.6))
    num_panes = 9
    step = (length - 1.0) / num_panes
    spans = [(0.6 + i * step + 0.12, 0.6 + (i + 1) * step - 0.12) for i in range(num_panes)]
    p.face(_side_panes(p, [(0.0, length)], 0.3, 0.95, half), Material.TRAM_PAINT, p.side_facing,
           variant=variant + 1, tone=0.9)
    p.face(_side_panes(p, spans, 1.3, 2.6, half), Material.CABIN_GLASS, p.side_facing)
    if pose.crosswise:
        return
    p.face([_end(half, half, 0.3, 0.95, 0.0, 0.0)], Material.TRAM_PAINT, Facing.CAMERA,
           variant=variant + 1)
    p.face([_end(0.84 * half, 0.8 * half, 1.35, 2.6, 0.0, 0.0)], Material.CAR_GLASS, Facing.CAMERA)
    p.face([_end(0.55 * half, 0.55 * half, 2.75, 3.1, 0.0, 0.0)], Material.TYRE, Facing.CAMERA)
    p.face([_end(0.4 * half, 0.4 * half, 2.83, 3.02, 0.0, 0.0)], Material.LAMP_AMBER,
           Facing.CAMERA)
    p.face([_end(0.7 * half, 0.7 * half, 0.1, 0.35, 0.0, 0.0)], Material.TYRE, Facing.CAMERA)
    p.lamps(half, 0.98, 1.22, 0.34)
