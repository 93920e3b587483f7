"""The ground: carriageway, pavements, crossing, markings, rails; and the wires above it."""

from dataclasses import dataclass

import numpy as np

from pipeline.pocket.geometry import (
    GROUND_DEPTH,
    Builder,
    Category,
    Facing,
    Ring,
    flat,
)
from pipeline.pocket.materials import Material

FAR_M = 220.0


@dataclass(frozen=True)
class Street:
    """A street in metres; center is the axis of the carriageway, crossing 0 means none."""

    center: float
    half: float
    walk: float
    setback: float
    crossing: float
    crossing_width: float
    rails: bool
    zebra: bool
    grass: bool

    def edge(self, side: float) -> float:
        """Return x of the left (-1) or right (+1) kerb."""
        return self.center + side * self.half

    @property
    def crossing_end(self) -> float:
        """Far edge of the crossing street."""
        return self.crossing + self.crossing_width

    @property
    def zebra_z(self) -> float:
        """Near edge of the zebra crossing."""
        return self.crossing - 4.6 if self.crossing else 13.0

    def in_crossing(self, z: float) -> bool:
        """Whether z lies on the crossing street, with a margin."""
        return bool(self.crossing) and self.crossing - 1.6 < z < self.crossing_end + 1.6


@dataclass(frozen=True)
class _Ground:
    """Adds flat primitives whose depth follows from the image row."""

    builder: Builder

    def __call__(
        self,
        rings: list[Ring],
        class_id: Category,
        material: Material,
        *,
        variant: int = 0,
        tone: float = 1.0,
    ) -> None:
        self.builder.add(
            rings,
            class_id,
            material,
            variant=variant,
            tone=tone,
            facing=Facing.UP,
            depth=GROUND_DEPTH,
        )


def add_ground(builder: Builder, rng: np.random.Generator, street: Street) -> None:
    """Add everything that lies on the ground."""
    builder.at(1e5)
    ground = _Ground(builder)
    tint = int(rng.integers(0, 240))
    _add_land(rng, street, ground, tint)
    _add_pavements(rng, street, ground, tint)
    _add_carriageway(rng, street, ground)
    _add_markings(rng, street, ground)
    if street.rails:
        _add_rails(street, ground)


def _add_land(rng: np.random.Generator, street: Street, ground: _Ground, tint: int) -> None:
    """Cover all ground with grass, soil or paving."""
    base = (Category.SIDEWALK, Material.PAVING)
    if street.grass:
        soil = rng.random() < 0.2
        base = (Category.TERRAIN, Material.SOIL if soil else Material.GRASS)
    ground([flat(-400.0, 400.0, 0.7, 2000.0)], *base, variant=tint)


def _add_pavements(rng: np.random.Generator, street: Street, ground: _Ground, tint: int) -> None:
    """Add both pavements, with a darker joint pattern by alternate slabs."""
    slab = 4.0
    for side in (-1.0, 1.0):
        inner = street.edge(side)
        outer = inner + side * street.walk
        x0, x1 = min(inner, outer), max(inner, outer)
        ground([flat(x0, x1, 0.7, FAR_M)], Category.SIDEWALK, Material.PAVING, variant=tint)
        slabs = [flat(x0, x1, z, z + 0.5 * slab) for z in np.arange(2.0, 40.0, slab).tolist()]
        ground(slabs, Category.SIDEWALK, Material.PAVING, variant=tint, tone=0.94)
        if street.grass is False and rng.random() < 0.22:
            strip = (x0, x0 + 0.35 * street.walk) if side < 0.0 else (x1 - 0.35 * street.walk, x1)
            ground([flat(*strip, 0.7, 90.0)], Category.TERRAIN, Material.GRASS, variant=tint)


def _add_carriageway(rng: np.random.Generator, street: Street, ground: _Ground) -> None:
    """Add asphalt between the kerbs, repaired patches, and the crossing street."""
    left, right = street.edge(-1.0), street.edge(1.0)
    variant = int(rng.integers(0, 240))
    ground([flat(left, right, 0.7, FAR_M)], Category.ROAD, Material.ASPHALT, variant=variant)
    for x in (left, right):
        ground([flat(x - 0.14, x + 0.14, 0.7, 110.0)], Category.SIDEWALK, Material.KERB)
    for i in range(int(rng.integers(0, 4))):
        x, z = float(rng.uniform(left, right - 2.0)), float(rng.uniform(4.0, 25.0))
        patch = flat(x, x + float(rng.uniform(0.8, 2.0)), z, z + float(rng.uniform(2, 9)))
        ground([patch], Category.ROAD, Material.PATCH, tone=1.08 if i else 1.0)
    if street.crossing:
        ground(
            [flat(-140.0, 140.0, street.crossing, street.crossing_end)],
            Category.ROAD,
            Material.ASPHALT,
            variant=variant,
            tone=0.97,
        )


def _add_rails(street: Street, ground: _Ground) -> None:
    """Add two tram tracks, each on a bed of its own."""
    for track in (-1.7, 1.7):
        x = street.center + track
        bed = flat(x - 1.0, x + 1.0, 0.7, FAR_M)
        ground([bed], Category.ROAD, Material.PATCH, variant=1, tone=0.95)
        for offset in (-0.72, 0.72):
            rail = flat(x + offset - 0.07, x + offset + 0.07, 0.7, 120.0)
            ground([rail], Category.ROAD, Material.RAIL)


def _add_markings(rng: np.random.Generator, street: Street, ground: _Ground) -> None:
    """Add lane lines, edge lines, the zebra crossing, the stop line and an arrow."""
    left, right = street.edge(-1.0), street.edge(1.0)
    paint = 1 if rng.random() < 0.15 else 0
    if not street.rails:
        dash = 3.0 if rng.random() < 0.7 else 0.0
        _add_line(rng, street, ground, street.center, 0.08, dash=dash, gap=4.5, variant=paint)
        if street.half > 5.6:
            for side in (-0.5, 0.5):
                x = street.center + side * street.half
                _add_line(rng, street, ground, x, 0.07, dash=2.5, gap=5.0)
    if rng.random() < 0.5:
        for x in (left + 0.35, right - 0.35):
            _add_line(rng, street, ground, x, 0.06)
    if street.zebra:
        z = street.zebra_z
        bars = [flat(x, x + 0.5, z, z + 3.0) for x in np.arange(left + 0.4, right - 0.5, 1.0)]
        ground(bars, Category.ROAD, Material.LANE_PAINT)
    if street.crossing:
        z = street.zebra_z - 1.4
        ground([flat(street.center, right - 0.3, z, z + 0.4)], Category.ROAD, Material.LANE_PAINT)
    if rng.random() < 0.25:
        _add_arrow(ground, street.center + 0.5 * street.half, float(rng.uniform(6.0, 10.0)))


def _add_line(
    rng: np.random.Generator,
    street: Street,
    ground: _Ground,
    x: float,
    half_width: float,
    *,
    dash: float = 0.0,
    gap: float = 0.0,
    variant: int = 0,
) -> None:
    """Add a line along the street up to the crossing; dash 0 makes it solid."""
    rings: list[Ring] = []
    stop = street.crossing - 5.5 if street.crossing else 100.0
    if dash <= 0.0:
        rings.append(flat(x - half_width, x + half_width, 0.8, stop))
    else:
        z = float(rng.uniform(1.0, 4.0))
        while z < min(stop, 80.0):
            rings.append(flat(x - half_width, x + half_width, z, min(z + dash, stop)))
            z += dash + gap
    ground(rings, Category.ROAD, Material.LANE_PAINT, variant=variant)


def _add_arrow(ground: _Ground, x: float, z: float) -> None:
    """Add an arrow that points ahead."""
    arrow = [
        (x - 0.12, 0.0, z),
        (x + 0.12, 0.0, z),
        (x + 0.12, 0.0, z + 1.8),
        (x + 0.45, 0.0, z + 1.8),
        (x, 0.0, z + 3.2),
        (x - 0.45, 0.0, z + 1.8),
        (x - 0.12, 0.0, z + 1.8),
    ]
    ground([arrow], Category.ROAD, Material.LANE_PAINT)


def add_wires(builder: Builder, rng: np.random.Generator, street: Street) -> None:
    """Span overhead wires along the street in the gap of sky (class sky, as annotators do)."""
    builder.at(95.0)
    height = float(rng.uniform(5.4, 7.0))
    for offset in (-1.7, 1.7):
        x = street.center + offset
        zs = [2.5 + (90.0 - 2.5) * (i / 10.0) ** 2 for i in range(11)]
        thick = [0.0011 * z / builder.view.focal for z in zs]
        ring = [(x, height - t, z) for z, t in zip(zs, thick, strict=True)]
        ring += [(x, height + t, z) for z, t in zip(reversed(zs), reversed(thick), strict=True)]
        builder.add([ring], Category.SKY, Material.METAL, tone=0.5, depth=35.0)
