"""Camera, projection and the list of primitives that a street is built from.

World axes in metres relative to the camera: x right, y up from the ground, z forward. Images are
2:1; projected points are (u, v) in 0..1 from the top left corner, so a scene has no pixel size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, auto
from itertools import chain

import numpy as np

from pipeline.labels import CLASS_NAMES, VOID
from pipeline.pocket.materials import Material

Point = tuple[float, float, float]
Ring = list[Point]

GROUND_DEPTH = 0.0
"""Depth entry of ground primitives: their depth follows from the image row."""

NEAR_M = 0.7


class Category(IntEnum):
    """The train ids of `pipeline.labels` under their names; VOID is not scored."""

    @staticmethod
    def _generate_next_value_(name: str, start: int, count: int, last_values: list[int]) -> int:
        return CLASS_NAMES.index(name.lower().replace("_", " "))

    ROAD = auto()
    SIDEWALK = auto()
    BUILDING = auto()
    WALL = auto()
    FENCE = auto()
    POLE = auto()
    TRAFFIC_LIGHT = auto()
    TRAFFIC_SIGN = auto()
    VEGETATION = auto()
    TERRAIN = auto()
    SKY = auto()
    PERSON = auto()
    RIDER = auto()
    CAR = auto()
    TRUCK = auto()
    BUS = auto()
    TRAIN = auto()
    MOTORCYCLE = auto()
    BICYCLE = auto()
    VOID = VOID


class Facing(IntEnum):
    """Which way a face looks; a look gives each one its own light."""

    CAMERA = 0
    UP = 1
    LEFT = 2
    RIGHT = 3
    SKY = 4


@dataclass(frozen=True)
class Camera:
    """Ranges (low, high) from which the camera of each scene is sampled.

    focal: in image widths; height_m; horizon: row of the horizon, 0..1; shift: sideways offset
    of the vanishing point in image widths; hood: probability of a visible ego vehicle;
    curve: largest sideways bend of the street, metres per square metre ahead.
    """

    focal: tuple[float, float] = (0.72, 0.95)
    height_m: tuple[float, float] = (1.35, 1.9)
    horizon: tuple[float, float] = (0.40, 0.52)
    shift: tuple[float, float] = (-0.09, 0.09)
    hood: float = 0.1
    curve: float = 0.0025


@dataclass(frozen=True)
class View:
    """One sampled camera; units as in `Camera`."""

    focal: float
    height_m: float
    horizon: float
    shift: float
    curve: float

    def project(self, points: np.ndarray) -> np.ndarray:
        """Return float64 [n, 2] image coordinates of [n, 3] world points."""
        z = np.maximum(points[:, 2], NEAR_M)
        x = points[:, 0] + self.curve * z * z
        u = 0.5 + self.shift + self.focal * x / z
        v = self.horizon + 2.0 * self.focal * (self.height_m - points[:, 1]) / z
        return np.stack([u, v], axis=1)

    def on_screen(self, u: float, v: float) -> Point:
        """Return a world point one metre ahead that projects to (u, v)."""
        x = (u - 0.5 - self.shift) / self.focal - self.curve
        return (x, self.height_m - (v - self.horizon) / (2.0 * self.focal), 1.0)

    def span(self, size_m: float, z: float) -> float:
        """Return the height in the image, 0..1, of `size_m` metres at distance `z`."""
        return 2.0 * self.focal * size_m / max(z, NEAR_M)


@dataclass(frozen=True)
class Light:
    """A light source: image position, distance in metres, and where it meets the ground."""

    u: float
    v: float
    ground_v: float
    depth: float
    material: Material


@dataclass(frozen=True)
class Scene:
    """A street as flat polygons, back to front, and the tables that describe them.

    points: float64 [n, 2]; rings[i] is a list of (start, stop) rows of `points`; the tables have
    one entry per primitive. Primitive 0 is the sky and covers the whole image.
    """

    seed: int
    view: View
    points: np.ndarray
    rings: tuple[tuple[tuple[int, int], ...], ...]
    class_ids: np.ndarray
    materials: np.ndarray
    variants: np.ndarray
    tones: np.ndarray
    facings: np.ndarray
    depths: np.ndarray
    lights: tuple[Light, ...]


class Builder:
    """Collects primitives in any order; `finish` sorts them back to front."""

    def __init__(self, view: View) -> None:
        self.view = view
        self._key = 1e6
        self._points: list[Point] = []
        self._rings: list[tuple[tuple[int, int], ...]] = []
        self._rows: list[tuple[float, int, int, int, float, int, float]] = []
        self._lights: list[tuple[Point, Material]] = []
        self._corner = [view.on_screen(u, v) for u, v in ((-1, -1), (2, -1), (2, 2), (-1, 2))]
        self.add([self._corner], Category.SKY, Material.SKY, facing=Facing.SKY, depth=1e4)

    def at(self, distance: float) -> None:
        """Place the primitives that follow at this sorting distance in metres."""
        self._key = distance

    def add(
        self,
        rings: Sequence[Ring],
        class_id: int,
        material: Material,
        *,
        variant: int = 0,
        tone: float = 1.0,
        facing: Facing = Facing.CAMERA,
        depth: float | None = None,
    ) -> None:
        """Add one primitive; overlapping rings cut holes; depth None is the sorting distance."""
        spans = []
        for ring in rings:
            start = len(self._points)
            self._points.extend(ring)
            spans.append((start, len(self._points)))
        self._rings.append(tuple(spans))
        own_depth = self._key if depth is None else depth
        self._rows.append((self._key, class_id, material, variant, tone, facing, own_depth))

    def light(self, point: Point, material: Material) -> None:
        """Register a light source at a world point."""
        self._lights.append((point, material))

    def finish(self, seed: int) -> Scene:
        """Return the scene, primitives sorted by distance, ties in the order of adding."""
        table = _table(self._rows, 7)
        order = np.argsort(-table[:, 0], kind="stable")
        table = table[order]
        lights = []
        for point, material in self._lights:
            ends = self.view.project(np.array([point, (point[0], 0.0, point[2])]))
            (u, v), (_, ground_v) = ends.tolist()
            lights.append(Light(u, v, ground_v, point[2], material))
        return Scene(
            seed=seed,
            view=self.view,
            points=self.view.project(_table(self._points, 3)),
            rings=tuple(self._rings[i] for i in order.tolist()),
            class_ids=table[:, 1].astype(np.uint8),
            materials=table[:, 2].astype(np.uint8),
            variants=table[:, 3].astype(np.uint8),
            tones=table[:, 4].astype(np.float32),
            facings=table[:, 5].astype(np.uint8),
            depths=table[:, 6].astype(np.float32),
            lights=tuple(lights),
        )


def _table(rows: Sequence[Sequence[float]], columns: int) -> np.ndarray:
    """Return float64 [rows, columns]; numpy.array takes twice as long over tuples."""
    values = np.fromiter(chain.from_iterable(rows), np.float64, columns * len(rows))
    return values.reshape(-1, columns)


def upright(x0: float, x1: float, y0: float, y1: float, z: float) -> list[Point]:
    """Return a rectangle that faces the camera."""
    return [(x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)]


def flat(x0: float, x1: float, z0: float, z1: float, y: float = 0.0) -> list[Point]:
    """Return a horizontal rectangle, cut along z so that it can follow a bend."""
    if z1 - z0 < 12.0:
        return [(x0, y, z0), (x1, y, z0), (x1, y, z1), (x0, y, z1)]
    steps = [z0 + (z1 - z0) * (i / 12.0) ** 2 for i in range(13)]
    return [(x0, y, z) for z in steps] + [(x1, y, z) for z in reversed(steps)]


def disc(x: float, y: float, z: float, radius: float, sides: int = 10) -> list[Point]:
    """Return a disc that faces the camera."""
    angles = np.arange(sides) * (2.0 * np.pi / sides)
    xs, ys = (x + radius * np.cos(angles)).tolist(), (y + radius * np.sin(angles)).tolist()
    return [(px, py, z) for px, py in zip(xs, ys, strict=True)]


def bar(start: tuple[float, float], stop: tuple[float, float], z: float, width: float) -> Ring:
    """Return a straight bar of `width` metres in the plane at z."""
    dx, dy = stop[0] - start[0], stop[1] - start[1]
    scale = 0.5 * width / max((dx * dx + dy * dy) ** 0.5, 1e-6)
    nx, ny = -dy * scale, dx * scale
    return [
        (start[0] + nx, start[1] + ny, z),
        (stop[0] + nx, stop[1] + ny, z),
        (stop[0] - nx, stop[1] - ny, z),
        (start[0] - nx, start[1] - ny, z),
    ]
