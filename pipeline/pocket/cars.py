"""Cars: saloons, hatchbacks and vans."""

from dataclasses import dataclass

import numpy as np

from pipeline.pocket.geometry import Builder, Category, Facing
from pipeline.pocket.materials import Material
from pipeline.pocket.vehicle_painter import Painter, Pose, across_quad, crosswise_lamps


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
    _add_body_side(p, car)
    _add_cabin_side(p, car)
    p.wheels((0.78, length - 0.85), half, 0.33)
    if pose.crosswise:
        crosswise_lamps(p, length, half, deck)
    else:
        _add_cabin_end(p, car)
        _add_body_end(p, car, rear)


def _add_body_side(p: Painter, car: _Car) -> None:
    """Add the deck seen from above and the side below the windows."""
    half, deck, length = car.half, car.deck, car.length
    p.face(
        [across_quad(half, half, deck, deck, 0.0, length)],
        Material.CAR_PAINT,
        Facing.UP,
        variant=car.variant,
        tone=1.12,
    )
    across = p.flank * half
    side = [
        (0.05, 0.3, across),
        (0.0, deck - 0.1, across),
        (0.15, deck, across),
        (length - 0.2, deck - 0.02, across),
        (length, deck - 0.2, across),
        (length, 0.3, across),
    ]
    p.face([side], Material.CAR_PAINT, p.side_facing, variant=car.variant, tone=0.9)


def _add_cabin_side(p: Painter, car: _Car) -> None:
    """Add the side of the cabin and its two panes."""
    deck, boot, back = car.deck, car.boot, car.length - car.hood
    a0, a1 = car.cabin
    low, high = p.flank * car.half * 0.97, p.flank * car.top
    cabin = [(boot, deck, low), (a0, car.roof, high), (a1, car.roof, high), (back, deck, low)]
    p.face([cabin], Material.CAR_PAINT, p.side_facing, variant=car.variant, tone=0.85)
    middle = 0.5 * (a0 + a1)
    panes = [
        [
            (boot + 0.22, deck + 0.03, low),
            (a0 + 0.08, car.glass, high),
            (middle - 0.06, car.glass, high),
            (middle - 0.06, deck + 0.03, low),
        ],
        [
            (middle + 0.06, deck + 0.03, low),
            (middle + 0.06, car.glass, high),
            (a1 - 0.05, car.glass, high),
            (back - 0.2, deck + 0.03, low),
        ],
    ]
    p.face(panes, Material.CAR_GLASS, p.side_facing)


def _add_cabin_end(p: Painter, car: _Car) -> None:
    """Add the roof, and the end of the cabin that faces us with its window."""
    half, top, deck, roof, boot = car.half, car.top, car.deck, car.roof, car.boot
    a0, a1 = car.cabin
    p.face(
        [across_quad(top, top, roof, roof, a0, a1)],
        Material.CAR_PAINT,
        Facing.UP,
        variant=car.variant,
        tone=1.12,
    )
    p.face(
        [across_quad(0.97 * half, top, deck, roof, boot, a0)],
        Material.CAR_PAINT,
        Facing.CAMERA,
        variant=car.variant,
        tone=0.95,
    )
    p.face(
        [across_quad(0.86 * half, 0.9 * top, deck + 0.05, car.glass, boot, a0)],
        Material.CAR_GLASS,
        Facing.CAMERA,
        variant=1,
    )


def _add_body_end(p: Painter, car: _Car, rear: bool) -> None:
    """Add tyres, panel, bumper, number plate or grille, and lamps of the end that faces us."""
    half, deck = car.half, car.deck
    p.tyres(half * 0.98, half * 0.7, 0.4, along=0.1)
    panel = [
        (0.0, 0.27, -half * 0.95),
        (0.0, 0.27, half * 0.95),
        (0.0, 0.6, half),
        (0.0, deck - 0.06, half * 0.97),
        (0.0, deck, half * 0.88),
        (0.0, deck, -half * 0.88),
        (0.0, deck - 0.06, -half * 0.97),
        (0.0, 0.6, -half),
    ]
    p.face([panel], Material.CAR_PAINT, Facing.CAMERA, variant=car.variant)
    bumper = across_quad(half * 0.93, half * 0.95, 0.27, 0.4, 0.0, 0.0)
    p.face([bumper], Material.TYRE, Facing.CAMERA, tone=1.6)
    if p.detail:
        material = Material.PLATE if rear else Material.TYRE
        p.face([across_quad(0.26, 0.26, 0.5, 0.62, 0.0, 0.0)], material, Facing.CAMERA)
    p.lamps(half, deck - 0.3, deck - 0.1, 0.36)
