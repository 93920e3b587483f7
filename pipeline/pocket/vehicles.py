"""Cars, vans, trucks, buses, trams and two-wheelers as extruded boxes with visible details."""

from dataclasses import dataclass

import numpy as np

from pipeline.pocket.geometry import Builder, Category, Facing
from pipeline.pocket.materials import Material
from pipeline.pocket.vehicle_painter import (
    Painter,
    Pose,
    across_quad,
    box,
    crosswise_lamps,
    side_panes,
)


@dataclass(frozen=True)
class _Car:
    """Sizes of one car in metres."""

    length: float
    half: float  # half the width
    deck: float  # height of the bonnet
    roof: float
    boot: float  # length of the part before the cabin, at the end we see
    hood: float  # length of the part behind it
    variant: int  # colour of the paint

    @property
    def top(self) -> float:
        """Half the width of the roof."""
        return 0.78 * self.half

    @property
    def cabin(self) -> tuple[float, float]:
        """Ends of the roof, along the car."""
        return self.boot + 0.5, self.length - self.hood - 0.65

    @property
    def glass(self) -> float:
        """Height of the upper edge of the panes."""
        return self.roof - 0.1


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
    car = _Car(length, half, deck, roof, boot, hood, variant)
    p = Painter(builder, pose, length, Category.CAR)
    p.shadow(length, half)
    _add_car_flank(p, car)
    if pose.crosswise:
        crosswise_lamps(p, length, half, deck)
    else:
        _add_car_end(p, car, rear)


def _add_car_flank(p: Painter, car: _Car) -> None:
    """Add the deck seen from above, the flank, the cabin and the wheels."""
    f, hood = p.flank, car.hood
    length, half, deck, roof, boot = car.length, car.half, car.deck, car.roof, car.boot
    top, variant = car.top, car.variant
    a0, a1 = car.cabin
    p.face(
        [across_quad(half, half, deck, deck, 0.0, length)],
        Material.CAR_PAINT,
        Facing.UP,
        variant=variant,
        tone=1.12,
    )
    p.face(
        [
            [
                (0.05, 0.3, f * half),
                (0.0, deck - 0.1, f * half),
                (0.15, deck, f * half),
                (length - 0.2, deck - 0.02, f * half),
                (length, deck - 0.2, f * half),
                (length, 0.3, f * half),
            ]
        ],
        Material.CAR_PAINT,
        p.side_facing,
        variant=variant,
        tone=0.9,
    )
    cabin = [
        (boot, deck, f * half * 0.97),
        (a0, roof, f * top),
        (a1, roof, f * top),
        (length - hood, deck, f * half * 0.97),
    ]
    p.face([cabin], Material.CAR_PAINT, p.side_facing, variant=variant, tone=0.85)
    middle = 0.5 * (a0 + a1)
    panes = [
        [
            (boot + 0.22, deck + 0.03, f * half * 0.97),
            (a0 + 0.08, car.glass, f * top),
            (middle - 0.06, car.glass, f * top),
            (middle - 0.06, deck + 0.03, f * half * 0.97),
        ],
        [
            (middle + 0.06, deck + 0.03, f * half * 0.97),
            (middle + 0.06, car.glass, f * top),
            (a1 - 0.05, car.glass, f * top),
            (length - hood - 0.2, deck + 0.03, f * half * 0.97),
        ],
    ]
    p.face(panes, Material.CAR_GLASS, p.side_facing)
    p.wheels((0.78, length - 0.85), half, 0.33)


def _add_car_end(p: Painter, car: _Car, rear: bool) -> None:
    """Add the end that faces us: roof, window, tyres, panel, bumper and lamps."""
    half, deck, roof, boot = car.half, car.deck, car.roof, car.boot
    top, variant = car.top, car.variant
    a0, a1 = car.cabin
    p.face(
        [across_quad(top, top, roof, roof, a0, a1)],
        Material.CAR_PAINT,
        Facing.UP,
        variant=variant,
        tone=1.12,
    )
    p.face(
        [across_quad(0.97 * half, top, deck, roof, boot, a0)],
        Material.CAR_PAINT,
        Facing.CAMERA,
        variant=variant,
        tone=0.95,
    )
    p.face(
        [across_quad(0.86 * half, 0.9 * top, deck + 0.05, car.glass, boot, a0)],
        Material.CAR_GLASS,
        Facing.CAMERA,
        variant=1,
    )
    tyres = [
        [
            (0.1, 0.0, s * half * 0.98),
            (0.1, 0.0, s * half * 0.7),
            (0.1, 0.4, s * half * 0.7),
            (0.1, 0.4, s * half * 0.98),
        ]
        for s in (-1.0, 1.0)
    ]
    p.face(tyres, Material.TYRE, Facing.CAMERA)
    p.face(
        [
            [
                (0.0, 0.27, -half * 0.95),
                (0.0, 0.27, half * 0.95),
                (0.0, 0.6, half),
                (0.0, deck - 0.06, half * 0.97),
                (0.0, deck, half * 0.88),
                (0.0, deck, -half * 0.88),
                (0.0, deck - 0.06, -half * 0.97),
                (0.0, 0.6, -half),
            ]
        ],
        Material.CAR_PAINT,
        Facing.CAMERA,
        variant=variant,
    )
    p.face(
        [across_quad(half * 0.93, half * 0.95, 0.27, 0.4, 0.0, 0.0)],
        Material.TYRE,
        Facing.CAMERA,
        tone=1.6,
    )
    if p.detail:
        grille = Material.PLATE if rear else Material.TYRE
        p.face([across_quad(0.26, 0.26, 0.5, 0.62, 0.0, 0.0)], grille, Facing.CAMERA)
    p.lamps(half, deck - 0.3, deck - 0.1, 0.36)


def add_truck(builder: Builder, rng: np.random.Generator, pose: Pose) -> None:
    """Add a lorry with cab and cargo box (class truck)."""
    length, half = float(rng.uniform(6.5, 10.0)), float(rng.uniform(1.15, 1.28))
    height, variant = float(rng.uniform(2.9, 3.8)), int(rng.integers(0, 250))
    cab_variant = int(rng.integers(0, 250))
    p = Painter(builder, pose, length, Category.TRUCK)
    rear = pose.heading == "away"
    cab = (length - 2.0, length) if rear else (0.0, 2.0)
    cargo = (0.0, length - 2.2) if rear else (2.2, length)
    p.shadow(length, half)
    boxes = [
        (Material.TRUCK_PAINT, variant, (*cargo, 0.95, height, half)),
        (Material.TRUCK_PAINT, cab_variant, (*cab, 0.55, min(height, 2.75), half * 0.96)),
    ]
    # The nearer box last: for a rear view that is the cargo.
    for material, tint, size in boxes[::-1] if rear else boxes:
        box(p, material, tint, size)
    box(p, Material.TYRE, 0, (0.1, length - 0.2, 0.5, 0.95, half * 0.9))
    p.face(
        side_panes(p, [(cab[0] + 0.5, cab[1] - 0.3)], 1.6, 2.45, half * 0.97),
        Material.CAR_GLASS,
        p.side_facing,
    )
    p.face(
        side_panes(p, [(cargo[0] + 0.5, cargo[1] - 0.5)], height * 0.5, height * 0.62, half),
        Material.AWNING,
        p.side_facing,
        variant=variant // 3,
    )
    p.wheels((1.0, length - 2.9, length - 1.2), half, 0.5)
    if pose.crosswise:
        return
    tyres = [
        [
            (0.0, 0.0, s * half * 0.96),
            (0.0, 0.0, s * half * 0.55),
            (0.0, 0.8, s * half * 0.55),
            (0.0, 0.8, s * half * 0.96),
        ]
        for s in (-1.0, 1.0)
    ]
    p.face(tyres, Material.TYRE, Facing.CAMERA)
    if rear:
        seam = [(0.0, 1.0, -0.05), (0.0, 1.0, 0.05), (0.0, height, 0.05), (0.0, height, -0.05)]
        p.face([seam], Material.METAL, Facing.CAMERA)
        p.face(
            [across_quad(half, half, 0.62, 0.95, 0.0, 0.0)], Material.METAL, Facing.CAMERA, tone=0.6
        )
        p.lamps(half, 0.66, 0.9, 0.4)
        return
    p.face(
        [across_quad(0.88 * half, 0.84 * half, 1.5, 2.45, 0.0, 0.0)],
        Material.CAR_GLASS,
        Facing.CAMERA,
        variant=1,
    )
    p.face(
        [across_quad(0.6 * half, 0.6 * half, 0.85, 1.3, 0.0, 0.0)],
        Material.TYRE,
        Facing.CAMERA,
        tone=1.5,
    )
    p.lamps(half, 0.7, 1.0, 0.4)


def add_bus(builder: Builder, rng: np.random.Generator, pose: Pose) -> None:
    """Add a city bus (class bus)."""
    length, half = float(rng.uniform(9.0, 12.0)), 1.27
    height, variant = float(rng.uniform(2.95, 3.2)), int(rng.integers(0, 250))
    p = Painter(builder, pose, length, Category.BUS)
    p.shadow(length, half)
    box(p, Material.BUS_PAINT, variant, (0.0, length, 0.35, height, half))
    num_panes = 6
    step = (length - 1.0) / num_panes
    spans = [(0.5 + i * step + 0.1, 0.5 + (i + 1) * step - 0.1) for i in range(num_panes)]
    p.face(side_panes(p, spans, 1.35, 2.4, half), Material.CABIN_GLASS, p.side_facing)
    p.face(side_panes(p, [(0.0, length)], 0.35, 0.6, half), Material.TYRE, p.side_facing, tone=2.0)
    p.wheels((2.0, length - 2.6), half, 0.5)
    if pose.crosswise:
        crosswise_lamps(p, length, half, 1.0)
        return
    tyres = [
        [
            (0.0, 0.0, s * half * 0.96),
            (0.0, 0.0, s * half * 0.7),
            (0.0, 0.5, s * half * 0.7),
            (0.0, 0.5, s * half * 0.96),
        ]
        for s in (-1.0, 1.0)
    ]
    p.face(tyres, Material.TYRE, Facing.CAMERA)
    low = 1.1 if pose.heading == "oncoming" else 1.5
    p.face(
        [across_quad(0.9 * half, 0.88 * half, low, 2.4, 0.0, 0.0)],
        Material.CAR_GLASS,
        Facing.CAMERA,
    )
    p.face(
        [across_quad(0.62 * half, 0.62 * half, 2.55, 2.85, 0.0, 0.0)], Material.TYRE, Facing.CAMERA
    )
    p.face(
        [across_quad(0.4 * half, 0.4 * half, 2.62, 2.78, 0.0, 0.0)],
        Material.LAMP_AMBER,
        Facing.CAMERA,
    )
    p.lamps(half, 0.6, 0.9, 0.4)


def add_tram(builder: Builder, rng: np.random.Generator, pose: Pose) -> None:
    """Add a tram on its rails (class train)."""
    length, half = float(rng.uniform(16.0, 26.0)), 1.28
    height, variant = 3.4, int(rng.integers(0, 250))
    p = Painter(builder, pose, length, Category.TRAIN)
    p.shadow(length, half)
    box(p, Material.TRAM_PAINT, variant, (0.0, length, 0.3, height, half))
    box(p, Material.METAL, 0, (length * 0.15, length * 0.7, height, height + 0.35, half * 0.6))
    num_panes = 9
    step = (length - 1.0) / num_panes
    spans = [(0.6 + i * step + 0.12, 0.6 + (i + 1) * step - 0.12) for i in range(num_panes)]
    p.face(
        side_panes(p, [(0.0, length)], 0.3, 0.95, half),
        Material.TRAM_PAINT,
        p.side_facing,
        variant=variant + 1,
        tone=0.9,
    )
    p.face(side_panes(p, spans, 1.3, 2.6, half), Material.CABIN_GLASS, p.side_facing)
    if pose.crosswise:
        return
    p.face(
        [across_quad(half, half, 0.3, 0.95, 0.0, 0.0)],
        Material.TRAM_PAINT,
        Facing.CAMERA,
        variant=variant + 1,
    )
    p.face(
        [across_quad(0.84 * half, 0.8 * half, 1.35, 2.6, 0.0, 0.0)],
        Material.CAR_GLASS,
        Facing.CAMERA,
    )
    p.face(
        [across_quad(0.55 * half, 0.55 * half, 2.75, 3.1, 0.0, 0.0)], Material.TYRE, Facing.CAMERA
    )
    p.face(
        [across_quad(0.4 * half, 0.4 * half, 2.83, 3.02, 0.0, 0.0)],
        Material.LAMP_AMBER,
        Facing.CAMERA,
    )
    p.face([across_quad(0.7 * half, 0.7 * half, 0.1, 0.35, 0.0, 0.0)], Material.TYRE, Facing.CAMERA)
    p.lamps(half, 0.98, 1.22, 0.34)
