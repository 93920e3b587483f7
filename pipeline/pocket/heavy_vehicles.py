"""Trucks, buses and trams as boxes with visible details."""

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
class _Truck:
    """Sizes of a truck in metres; cab and cargo are spans along it."""

    length: float
    half: float  # half the width
    height: float
    cab: tuple[float, float]
    cargo: tuple[float, float]


def add_truck(builder: Builder, rng: np.random.Generator, pose: Pose) -> None:
    """Add a lorry with cab and cargo box (class truck)."""
    length, half = float(rng.uniform(6.5, 10.0)), float(rng.uniform(1.15, 1.28))
    height, variant = float(rng.uniform(2.9, 3.8)), int(rng.integers(0, 250))
    cab_variant = int(rng.integers(0, 250))
    p = Painter(builder, pose, length, Category.TRUCK)
    rear = pose.heading == "away"
    truck = _Truck(
        length,
        half,
        height,
        cab=(length - 2.0, length) if rear else (0.0, 2.0),
        cargo=(0.0, length - 2.2) if rear else (2.2, length),
    )
    p.shadow(length, half)
    cab_box = (*truck.cab, 0.55, min(height, 2.75), half * 0.96)
    cargo_box = (*truck.cargo, 0.95, height, half)
    # The nearer box last: for a rear view that is the cargo.
    boxes = [(cargo_box, variant), (cab_box, cab_variant)]
    for size, tint in boxes[::-1] if rear else boxes:
        box(p, Material.TRUCK_PAINT, tint, size)
    box(p, Material.TYRE, 0, (0.1, length - 0.2, 0.5, 0.95, half * 0.9))
    _add_truck_side(p, truck, variant // 3)
    if pose.crosswise:
        return
    p.tyres(half * 0.96, half * 0.55, 0.8)
    if rear:
        _add_truck_rear(p, truck)
    else:
        _add_truck_front(p, truck)


def _add_truck_side(p: Painter, truck: _Truck, stripe: int) -> None:
    """Add the side window of the cab, a stripe along the cargo box, and the wheels."""
    length, half, height = truck.length, truck.half, truck.height
    (cab0, cab1), (cargo0, cargo1) = truck.cab, truck.cargo
    window = side_panes(p, [(cab0 + 0.5, cab1 - 0.3)], 1.6, 2.45, half * 0.97)
    p.face(window, Material.CAR_GLASS, p.side_facing)
    band = side_panes(p, [(cargo0 + 0.5, cargo1 - 0.5)], height * 0.5, height * 0.62, half)
    p.face(band, Material.AWNING, p.side_facing, variant=stripe)
    p.wheels((1.0, length - 2.9, length - 1.2), half, 0.5)


def _add_truck_rear(p: Painter, truck: _Truck) -> None:
    """Add the seam between the doors, the bumper and the lamps."""
    half, height = truck.half, truck.height
    seam = [(0.0, 1.0, -0.05), (0.0, 1.0, 0.05), (0.0, height, 0.05), (0.0, height, -0.05)]
    p.face([seam], Material.METAL, Facing.CAMERA)
    bumper = across_quad(half, half, 0.62, 0.95, 0.0, 0.0)
    p.face([bumper], Material.METAL, Facing.CAMERA, tone=0.6)
    p.lamps(half, 0.66, 0.9, 0.4)


def _add_truck_front(p: Painter, truck: _Truck) -> None:
    """Add the windscreen, the grille and the lamps."""
    half = truck.half
    windscreen = across_quad(0.88 * half, 0.84 * half, 1.5, 2.45, 0.0, 0.0)
    p.face([windscreen], Material.CAR_GLASS, Facing.CAMERA, variant=1)
    grille = across_quad(0.6 * half, 0.6 * half, 0.85, 1.3, 0.0, 0.0)
    p.face([grille], Material.TYRE, Facing.CAMERA, tone=1.5)
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
    p.tyres(half * 0.96, half * 0.7, 0.5)
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
