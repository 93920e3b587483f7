"""Parts that vehicles share, in the coordinates of one vehicle.

Local coordinates are metres (along, up, across): along 0 is the end we see, across 0 the middle.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

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


def circle(along: float, up: float, across: float, radius: float, sides: int = 10) -> list[Local]:
    angles = [2.0 * math.pi * i / sides for i in range(sides)]
    return [(along + radius * math.cos(a), up + radius * math.sin(a), across) for a in angles]


def across_quad(
    half0: float, half1: float, y0: float, y1: float, a0: float, a1: float
) -> list[Local]:
    """Return a face of mirror symmetry whose edges (half width, up, along) are 0 and 1."""
    return [(a0, y0, -half0), (a0, y0, half0), (a1, y1, half1), (a1, y1, -half1)]


class Painter:
    """Adds faces of one vehicle given in local coordinates."""

    def __init__(self, builder: Builder, pose: Pose, length: float, class_id: Category) -> None:
        self.builder, self.pose, self.class_id = builder, pose, class_id
        self.to_world = pose.placer(length)
        self.detail = builder.view.span(1.5, pose.z) > 0.045
        # The flank we see: the one towards the optical axis, or the near one when crossing.
        self.flank = -1.0 if (pose.crosswise or pose.x > 0.0) else 1.0
        side = Facing.LEFT if pose.x > 0.0 else Facing.RIGHT
        self.side_facing = Facing.CAMERA if pose.crosswise else side
        self.end_facing = Facing.LEFT if pose.heading == "left" else Facing.RIGHT
        if not pose.crosswise:
            self.end_facing = Facing.CAMERA

    def ring(self, points: list[Local]) -> Ring:
        return [self.to_world(p) for p in points]

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
            material,
            variant=variant,
            tone=tone,
            facing=facing,
            depth=self.pose.z,
        )

    def shadow(self, length: float, half: float) -> None:
        shape = [
            (-0.25, 0.0, -half - 0.2),
            (-0.25, 0.0, half + 0.2),
            (length + 0.3, 0.0, half + 0.2),
            (length + 0.3, 0.0, -half - 0.2),
        ]
        self.builder.add(
            [self.ring(shape)], Category.ROAD, Material.SHADOW, facing=Facing.UP, depth=0.0
        )

    def wheels(self, positions: tuple[float, ...], half: float, radius: float) -> None:
        across = self.flank * half
        self.face(
            [circle(a, radius, across, radius, 12) for a in positions],
            Material.TYRE,
            self.side_facing,
        )
        if self.detail:
            self.face(
                [circle(a, radius, across, 0.58 * radius, 8) for a in positions],
                Material.HUB,
                self.side_facing,
            )

    def tyres(self, outer: float, inner: float, height: float, *, along: float = 0.0) -> None:
        """Add the two tyres of the end that faces us, between two distances from the middle."""
        shapes = [
            [
                (along, 0.0, s * outer),
                (along, 0.0, s * inner),
                (along, height, s * inner),
                (along, height, s * outer),
            ]
            for s in (-1.0, 1.0)
        ]
        self.face(shapes, Material.TYRE, Facing.CAMERA)

    def lamps(self, half: float, y0: float, y1: float, width: float) -> None:
        shapes = [
            [
                (0.0, y0, s * half),
                (0.0, y0, s * (half - width)),
                (0.0, y1, s * (half - width)),
                (0.0, y1, s * half),
            ]
            for s in (-0.96, 0.96)
        ]
        front = self.pose.heading == "oncoming"
        material = Material.HEADLIGHT if front else Material.TAILLIGHT
        self.face(shapes, material, self.end_facing)
        for s in (-0.8, 0.8):
            self.builder.light(self.to_world((0.0, 0.5 * (y0 + y1), s * half)), material)


def crosswise_lamps(p: Painter, length: float, half: float, deck: float) -> None:
    """Add the lamps at both ends of the flank of a vehicle that crosses the view."""
    for along, material in ((0.0, Material.HEADLIGHT), (length - 0.22, Material.TAILLIGHT)):
        shape = [
            (along, deck - 0.32, p.flank * half),
            (along + 0.22, deck - 0.32, p.flank * half),
            (along + 0.22, deck - 0.14, p.flank * half),
            (along, deck - 0.14, p.flank * half),
        ]
        p.face([shape], material, p.side_facing)
        p.builder.light(p.to_world((along, deck - 0.2, p.flank * half)), material)


def box(p: Painter, material: Material, variant: int, size: tuple[float, ...]) -> None:
    """Add the three visible faces of a box; size is (along0, along1, y0, y1, half width)."""
    a0, a1, y0, y1, half = size
    f = p.flank
    p.face(
        [across_quad(half, half, y1, y1, a0, a1)], material, Facing.UP, variant=variant, tone=1.1
    )
    p.face(
        [[(a0, y0, f * half), (a0, y1, f * half), (a1, y1, f * half), (a1, y0, f * half)]],
        material,
        p.side_facing,
        variant=variant,
        tone=0.86,
    )
    if p.pose.crosswise:
        visible = a0 if (p.pose.x > 0.0) == (p.pose.heading == "left") else a1
    else:
        visible = a0
    p.face(
        [across_quad(half, half, y0, y1, visible, visible)], material, p.end_facing, variant=variant
    )


def side_panes(
    p: Painter, spans: list[tuple[float, float]], y0: float, y1: float, half: float
) -> list[list[Local]]:
    """Return one pane of the visible flank for each span along the vehicle."""
    f = p.flank * half
    return [[(s, y0, f), (s, y1, f), (e, y1, f), (e, y0, f)] for s, e in spans]
