"""Seeded street scenes: which street, what stands beside it, and who is on it."""

import numpy as np

from pipeline.pocket.buildings import House, add_building, add_skyline
from pipeline.pocket.cars import add_car
from pipeline.pocket.geometry import Builder, Camera, Category, Facing, Scene, View
from pipeline.pocket.heavy_vehicles import add_bus, add_tram, add_truck
from pipeline.pocket.materials import Material
from pipeline.pocket.objects import (
    add_bin,
    add_fence,
    add_sign,
    add_street_lamp,
    add_traffic_light,
    add_wall,
)
from pipeline.pocket.people import add_person
from pipeline.pocket.street import Street, add_ground, add_wires
from pipeline.pocket.two_wheelers import add_bicycle, add_motorcycle
from pipeline.pocket.vegetation import add_bush, add_tree
from pipeline.pocket.vehicle_painter import Pose

STYLES = ("canyon", "city", "suburb", "park")
STYLE_WEIGHTS = (0.28, 0.36, 0.22, 0.14)


def make_scene(seed: int, camera: Camera = Camera()) -> Scene:  # noqa: B008
    """Build the street of `seed` as seen by a camera sampled from the ranges of `camera`."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, 1))))
    view = View(
        focal=float(rng.uniform(*camera.focal)),
        height_m=float(rng.uniform(*camera.height_m)),
        horizon=float(rng.uniform(*camera.horizon)),
        shift=float(rng.uniform(*camera.shift)),
        curve=float(rng.uniform(-camera.curve, camera.curve)) if rng.random() < 0.5 else 0.0,
    )
    has_hood = rng.random() < camera.hood
    style = STYLES[int(rng.choice(len(STYLES), p=STYLE_WEIGHTS))]
    builder = Builder(view)
    street = _sample_street(rng, style)
    add_skyline(builder, rng, towers=style in ("canyon", "city"))
    add_ground(builder, rng, street)
    for side in (-1.0, 1.0):
        _roadside(builder, rng, street, side, style)
        _furniture(builder, rng, street, side, style)
    _vehicles(builder, rng, street)
    _people(builder, rng, street, style)
    if rng.random() < (0.7 if street.rails else 0.1) and view.curve == 0.0:
        add_wires(builder, rng, street)
    if has_hood:
        _hood(builder, rng)
    return builder.finish(seed)


def _sample_street(rng: np.random.Generator, style: str) -> Street:
    half = float(rng.uniform(3.6, 6.8 if style != "canyon" else 5.6))
    rails = rng.random() < 0.14
    if rails:
        half = max(half, 5.8)
    crossing = float(rng.uniform(16.0, 42.0)) if rng.random() < 0.42 else 0.0
    return Street(
        center=-half * float(rng.uniform(0.1, 0.5)),
        half=half,
        walk=float(rng.uniform(1.8, 4.2)),
        setback=float(rng.uniform(3.0, 9.0)) if style in ("suburb", "park") else 0.0,
        crossing=crossing,
        crossing_width=float(rng.uniform(7.0, 11.0)),
        rails=rails,
        zebra=(crossing > 0.0 and rng.random() < 0.7) or rng.random() < 0.15,
        grass=style in ("suburb", "park") or rng.random() < 0.15,
    )


def _roadside(
    builder: Builder, rng: np.random.Generator, street: Street, side: float, style: str
) -> None:
    """Fill one side with lots: buildings, or walls, fences, trees and open ground."""
    lot = street.edge(side) + side * (street.walk + street.setback)
    line = street.edge(side) + side * (street.walk + 0.1)
    build = {"canyon": 0.95, "city": 0.74, "suburb": 0.6, "park": 0.14}[style]
    z = float(rng.uniform(-4.0, 5.0))
    while z < 130.0:
        length = float(rng.uniform(8.0, 17.0)) * (1.0 if z < 60.0 else 1.6)
        stop = z + length
        if street.crossing and stop > street.crossing - 2.0 and z < street.crossing_end + 2.0:
            stop = street.crossing - 2.0
            if stop - z < 4.0:
                z = street.crossing_end + 2.0
                continue
        z0 = max(z, 1.0)
        if stop > z0 + 1.0:
            if rng.random() < build:
                _building_on_lot(builder, rng, lot, z0, stop, style)
            else:
                _trees_on_lot(builder, rng, lot, side, z0, stop)
            if stop > 4.0 and z < 70.0 and (street.grass or rng.random() < 0.12):
                _boundary(builder, rng, line, z0, stop)
        z = stop


def _building_on_lot(
    builder: Builder, rng: np.random.Generator, x: float, z0: float, z1: float, style: str
) -> None:
    """Add a building in the style of the street between z0 and z1, if there is room for it."""
    heights = {"canyon": (11.0, 26.0), "city": (7.0, 17.0)}.get(style, (4.5, 8.0))
    low_rise = style in ("suburb", "park")
    shop = not low_rise and rng.random() < 0.5
    gap = float(rng.uniform(1.0, 4.0)) if low_rise else 0.0
    house = House(
        x,
        z0,
        z1 - gap,
        height=float(rng.uniform(*heights)),
        depth_m=float(rng.uniform(8.0, 14.0)),
        shop=shop,
        gable=low_rise or rng.random() < 0.2,
    )
    if house.z1 > z0 + 1.0:
        add_building(builder, rng, house)


def _trees_on_lot(
    builder: Builder, rng: np.random.Generator, lot: float, side: float, z0: float, z1: float
) -> None:
    """Add up to three trees between z0 and z1."""
    for _ in range(int(rng.integers(1, 4))):
        x = lot + side * float(rng.uniform(1.5, 12.0))
        z = float(rng.uniform(max(z0, 6.0), max(z1, 7.0)))
        add_tree(builder, rng, x, z, float(rng.uniform(5.0, 10.0)))


def _boundary(builder: Builder, rng: np.random.Generator, x: float, z0: float, z1: float) -> None:
    kind = rng.random()
    if kind < 0.26:
        add_fence(builder, rng, x, z0, z1)
    elif kind < 0.44:
        add_wall(builder, rng, x, z0, z1)
    elif kind < 0.62:
        for z in np.arange(z1, max(z0, 5.0), -2.2).tolist():
            add_bush(builder, rng, x + (0.8 if x > 0.0 else -0.8), z, float(rng.uniform(1.0, 1.8)))


def _furniture(
    builder: Builder, rng: np.random.Generator, street: Street, side: float, style: str
) -> None:
    """Stand lamps, trees, signs, traffic lights, bins and parked two-wheelers along one kerb."""
    kerb = street.edge(side) + side * 0.6
    _street_lamps(builder, rng, street, side, kerb)
    chance = {"canyon": 0.3, "city": 0.55, "suburb": 0.6, "park": 0.85}[style]
    if rng.random() < chance:
        _row_of_trees(builder, rng, street, side)
    for _ in range(int(rng.integers(0, 3))):
        z = float(rng.uniform(8.0, 30.0))
        if not street.in_crossing(z):
            add_sign(builder, rng, kerb + side * 0.1, z)
    if street.crossing and rng.random() < 0.8:
        arm = -side * float(rng.uniform(2.5, 3.8)) if rng.random() < 0.35 else 0.0
        add_traffic_light(builder, rng, kerb, street.crossing - 1.0, arm)
    if rng.random() < 0.09:
        add_bin(builder, rng, kerb + side * 0.5, float(rng.uniform(8.0, 20.0)))
    if rng.random() < 0.12:
        z = float(rng.uniform(9.0, 16.0))
        for i in range(int(rng.integers(1, 4))):
            heading = "cross" if rng.random() < 0.5 else "along"
            add_bicycle(builder, rng, kerb + side * 0.5, z + 1.0 * i, heading, ridden=False)
    if rng.random() < 0.035:
        x, z = street.edge(side) - side * 0.6, float(rng.uniform(8.0, 16.0))
        add_motorcycle(builder, rng, x, z, "along", ridden=False)


def _street_lamps(
    builder: Builder, rng: np.random.Generator, street: Street, side: float, kerb: float
) -> None:
    spacing = float(rng.uniform(17.0, 26.0))
    height = float(rng.uniform(5.5, 8.0))
    if rng.random() < 0.85:
        for z in np.arange(float(rng.uniform(9.0, 22.0)), 90.0, spacing).tolist():
            if not street.in_crossing(z):
                add_street_lamp(builder, kerb, z, height, -side * float(rng.uniform(1.2, 1.8)))


def _row_of_trees(builder: Builder, rng: np.random.Generator, street: Street, side: float) -> None:
    """Add trees at equal distances in the middle of the pavement, or behind a narrow one."""
    step = float(rng.uniform(8.0, 15.0))
    size = float(rng.uniform(4.5, 8.5))
    inset = 0.5 * street.walk if street.walk > 2.5 else street.walk + 0.5
    x = street.edge(side) + side * inset
    for z in np.arange(float(rng.uniform(8.0, 18.0)), 80.0, step).tolist():
        if not street.in_crossing(z) and rng.random() < 0.8:
            add_tree(builder, rng, x, z, size * float(rng.uniform(0.85, 1.15)))


def _vehicles(builder: Builder, rng: np.random.Generator, street: Street) -> None:
    """Put traffic in both lanes, parked cars at the kerbs, cross traffic and a rare tram."""
    lane = 0.5 * street.half
    lanes = {"away": street.center + lane, "oncoming": street.center - lane}
    taken = {"away": float(rng.uniform(9.0, 26.0)), "oncoming": float(rng.uniform(7.0, 26.0))}
    for heading, lane in lanes.items():
        tram = street.rails and rng.random() < 0.28
        if tram:
            track = street.center + (1.7 if heading == "away" else -1.7)
            taken[heading] += 5.0
            builder.at(taken[heading] + 4.0)
            add_tram(builder, rng, Pose(track, taken[heading], heading))
            continue
        z = taken[heading]
        for _ in range(int(rng.integers(0, 4))):
            _vehicle(builder, rng, Pose(lane + float(rng.uniform(-0.3, 0.3)), z, heading))
            z += float(rng.uniform(11.0, 28.0))
    for side in (-1.0, 1.0):
        if rng.random() < 0.42 and street.half > 4.4:
            z = float(rng.uniform(5.0, 18.0))
            heading = "away" if side > 0.0 else "oncoming"
            for _ in range(int(rng.integers(1, 6))):
                if not street.in_crossing(z) and not street.in_crossing(z + 4.5):
                    pose = Pose(street.edge(side) - side * 1.1, z, heading)
                    builder.at(z)
                    add_car(builder, rng, pose)
                z += float(rng.uniform(5.4, 9.0))
    if street.crossing and rng.random() < 0.4:
        heading = str(rng.choice(["left", "right"]))
        z = street.crossing + (0.3 if heading == "left" else 0.55) * street.crossing_width
        _vehicle(builder, rng, Pose(float(rng.uniform(-12.0, 12.0)), z, heading))


def _vehicle(builder: Builder, rng: np.random.Generator, pose: Pose) -> None:
    builder.at(pose.z + (0.5 if pose.heading in ("left", "right") else 0.0))
    kind = rng.random()
    cross = pose.heading in ("left", "right")
    near = max(6.5, pose.z - 3.5)
    if kind < 0.035:
        add_bus(builder, rng, pose)
    elif kind < 0.07:
        add_truck(builder, rng, pose)
    elif kind < 0.105:
        x = pose.x + float(rng.uniform(0.2, 1.0))
        add_bicycle(builder, rng, x, near, "cross" if cross else "along", ridden=True)
    elif kind < 0.132:
        add_motorcycle(
            builder, rng, pose.x, near, "cross" if cross else "along", ridden=rng.random() < 0.8
        )
    else:
        add_car(builder, rng, pose)


def _people(builder: Builder, rng: np.random.Generator, street: Street, style: str) -> None:
    """Put walkers on the pavements, and sometimes on the crossing."""
    busy = {"canyon": 4.0, "city": 3.2, "suburb": 1.4, "park": 1.8}[style]
    for _ in range(int(rng.poisson(busy))):
        side = float(rng.choice([-1.0, 1.0]))
        x = street.edge(side) + side * float(rng.uniform(0.4, max(street.walk, 0.9)))
        z = float(rng.uniform(6.5, 34.0))
        add_person(builder, rng, x, z, Category.PERSON)
        if rng.random() < 0.3:
            add_person(builder, rng, x + 0.6, z + 0.3, Category.PERSON)
    if street.zebra and rng.random() < 0.55:
        z = street.zebra_z + 1.0
        for _ in range(int(rng.integers(1, 4))):
            x = street.center + float(rng.uniform(-1.0, 1.0)) * street.half
            add_person(builder, rng, x, z + float(rng.uniform(-0.6, 0.8)), Category.PERSON)


def _hood(builder: Builder, rng: np.random.Generator) -> None:
    """Cover the bottom edge with the ego vehicle (void)."""
    builder.at(0.5)
    view = builder.view
    top = float(rng.uniform(0.87, 0.93))
    variant = int(rng.integers(0, 3))
    edge = [(u, top + 0.07 * (2.0 * u - 1.0) ** 2) for u in np.linspace(0.0, 1.0, 15).tolist()]
    for drop, tone in ((0.0, 1.0), (0.025, 1.3), (0.05, 1.1)):
        ring = [view.on_screen(u, v + drop) for u, v in edge]
        ring += [view.on_screen(1.0, 1.1), view.on_screen(0.0, 1.1)]
        builder.add(
            [ring], Category.VOID, Material.HOOD, variant=variant, tone=tone, facing=Facing.UP
        )
