"""Things that stand along a street: trees, lamps, traffic lights, signs, fences, walls, bins."""

import math
from collections.abc import Sequence
from typing import cast

import numpy as np

from pipeline.pocket.geometry import Builder, Category, Facing, Ring, bar, disc, upright
from pipeline.pocket.materials import Material

CROWN_ANGLES = np.arange(26) * (2.0 * math.pi / 26)
CROWN_COS, CROWN_SIN = np.cos(CROWN_ANGLES), np.sin(CROWN_ANGLES)


def _crowns(
    rng: np.random.Generator, z: float, ellipses: Sequence[tuple[float, float, float, float]]
) -> list[Ring]:
    """Return irregular, lobed outlines for ellipses (x, y, radius across, radius upwards)."""
    count = len(CROWN_ANGLES)
    samples = [
        (rng.integers(3, 6), rng.uniform(0, 6), rng.uniform(0, 6), *rng.uniform(-0.07, 0.07, count))
        for _ in ellipses
    ]
    lobes, first, second, rough = np.split(np.array(samples), (1, 2, 3), axis=1)
    radii = 1.0 + 0.11 * np.sin(CROWN_ANGLES * lobes + first)
    radii += 0.07 * np.abs(np.sin(CROWN_ANGLES * 4.5 + second))
    radii = radii * (0.97 + rough)
    x, y, radius_x, radius_y = np.array(ellipses).T[..., None]
    outlines = np.full((len(ellipses), count, 3), z)
    outlines[..., 0] = x + radius_x * radii * CROWN_COS
    outlines[..., 1] = np.maximum(y + radius_y * radii * CROWN_SIN, 0.0)
    return cast("list[Ring]", outlines.tolist())  # lists in place of tuples


def add_tree(builder: Builder, rng: np.random.Generator, x: float, z: float, size: float) -> None:
    """Add a broad-leaved tree or a conifer about `size` metres high (class vegetation)."""
    builder.at(z)
    variant = int(rng.integers(0, 240))
    category = Category.VEGETATION
    trunk = 0.045 * size
    conifer = rng.random() < 0.16
    branch_y = (0.16 if conifer else 0.36) * size
    builder.add(
        [
            [
                (x - 1.3 * trunk, 0.0, z),
                (x + 1.3 * trunk, 0.0, z),
                (x + 0.7 * trunk, branch_y * 1.3, z),
                (x - 0.7 * trunk, branch_y * 1.3, z),
            ]
        ],
        category,
        Material.BARK,
        variant=variant,
    )
    if conifer:
        tiers = 4
        for i in range(tiers):
            low = branch_y + (size - branch_y) * i / (tiers + 0.6)
            high = min(size, low + (size - branch_y) * 0.44)
            half = size * 0.24 * (1.0 - i / (tiers + 0.5))
            tone = 0.85 + 0.1 * i
            builder.add(
                [[(x - half, low, z), (x + half, low, z), (x, high, z)]],
                category,
                Material.FOLIAGE_DARK,
                variant=2,
                tone=tone * 1.25,
            )
            builder.add(
                [[(x - half, low, z), (x - half * 0.1, low + 0.1, z), (x, high, z)]],
                category,
                Material.FOLIAGE,
                variant=2,
                tone=tone,
                facing=Facing.UP,
            )
        return
    radius_y = 0.5 * (size - branch_y * 0.9)
    radius_x = radius_y * float(rng.uniform(0.75, 1.15))
    y = size - radius_y
    layers = [
        (Material.FOLIAGE_DARK, 0.0, 0.0, 1.0, Facing.CAMERA),
        (Material.FOLIAGE, -0.08, 0.12, 0.82, Facing.CAMERA),
        (Material.FOLIAGE, 0.38, 0.02, 0.42, Facing.CAMERA),
        (Material.FOLIAGE_LIGHT, -0.3, 0.42, 0.44, Facing.UP),
        (Material.FOLIAGE_LIGHT, 0.3, 0.36, 0.3, Facing.UP),
    ]
    if builder.view.span(size, z) < 0.12:
        layers = layers[:4:3] + layers[1:2]
    ellipses = [
        (x + dx * radius_x, y + dy * radius_y, scale * radius_x, scale * radius_y)
        for _, dx, dy, scale, _ in layers
    ]
    for (material, *_, facing), ring in zip(layers, _crowns(rng, z, ellipses), strict=True):
        builder.add([ring], category, material, variant=variant, facing=facing)


def add_bush(builder: Builder, rng: np.random.Generator, x: float, z: float, size: float) -> None:
    """Add a bush of `size` metres (class vegetation)."""
    builder.at(z)
    variant = int(rng.integers(0, 240))
    shapes = ((0.4, 1.0), (0.55, 0.75))
    ellipses = [(x, dy * size, scale * size * 0.8, scale * size * 0.55) for dy, scale in shapes]
    materials = (Material.FOLIAGE_DARK, Material.FOLIAGE)
    for material, ring in zip(materials, _crowns(rng, z, ellipses), strict=True):
        builder.add([ring], Category.VEGETATION, material, variant=variant)


def _pole(builder: Builder, x: float, z: float, height: float, width: float = 0.12) -> None:
    # Thin poles keep about one pixel of a 256 px wide image, or they would flicker away.
    wide = max(width, 0.0042 * z / builder.view.focal)
    builder.add(
        [upright(x - 0.5 * wide, x + 0.5 * wide, 0.0, height, z)],
        Category.POLE,
        Material.METAL,
        variant=int(z * 7.0) % 3,
    )


def add_street_lamp(builder: Builder, x: float, z: float, height: float, arm: float) -> None:
    """Add a street lamp whose arm reaches `arm` metres over the road (class pole)."""
    builder.at(z)
    _pole(builder, x, z, height, 0.16)
    wide = max(0.1, 0.003 * z / builder.view.focal)
    builder.add(
        [bar((x, height - 0.1), (x + arm, height + 0.35), z, wide)], Category.POLE, Material.METAL
    )
    head = (x + arm, height + 0.32)
    builder.add(
        [
            [
                (head[0] - 0.45, head[1], z),
                (head[0] + 0.45, head[1], z),
                (head[0] + 0.3, head[1] + 0.22, z),
                (head[0] - 0.3, head[1] + 0.22, z),
            ]
        ],
        Category.POLE,
        Material.METAL,
    )
    builder.add(
        [upright(head[0] - 0.38, head[0] + 0.38, head[1] - 0.16, head[1] + 0.02, z)],
        Category.POLE,
        Material.STREET_LAMP,
    )
    builder.light((head[0], head[1] - 0.1, z), Material.STREET_LAMP)


def add_traffic_light(
    builder: Builder, rng: np.random.Generator, x: float, z: float, arm: float
) -> None:
    """Add a traffic light on a pole, with a second head over the road when `arm` is not 0."""
    builder.at(z)
    state = int(rng.integers(0, 3))
    height = float(rng.uniform(3.0, 3.5))
    tall = 5.6 if arm else height
    _pole(builder, x, z, tall, 0.16)
    heads = [(x, height)]
    if arm:
        wide = max(0.12, 0.003 * z / builder.view.focal)
        builder.add([bar((x, tall), (x + arm, tall + 0.1), z, wide)], Category.POLE, Material.METAL)
        heads.append((x + arm, tall + 0.2))
    for hx, hy in heads:
        builder.add(
            [upright(hx - 0.24, hx + 0.24, hy - 1.3, hy, z)],
            Category.TRAFFIC_LIGHT,
            Material.LIGHT_HOUSING,
        )
        lamps = (Material.LAMP_RED, Material.LAMP_AMBER, Material.LAMP_GREEN)
        for i, material in enumerate(lamps):
            lit = i == state
            y = hy - 0.24 - 0.41 * i
            builder.add(
                [disc(hx, y, z, 0.17 if lit else 0.13, 8)],
                Category.TRAFFIC_LIGHT,
                material if lit else Material.LAMP_OFF,
            )
            if lit:
                builder.light((hx, y, z), material)


def add_sign(builder: Builder, rng: np.random.Generator, x: float, z: float) -> None:
    """Add a traffic sign on a pole: disc, triangle, octagon, square or a direction board."""
    builder.at(z)
    kind = int(rng.integers(0, 6))
    y = float(rng.uniform(2.3, 2.9))
    _pole(builder, x, z, y + (0.3 if kind < 5 else 0.9), 0.1)
    category = Category.TRAFFIC_SIGN
    size = 0.42
    if kind == 0:
        builder.add([disc(x, y, z, size, 12)], category, Material.SIGN, variant=1)
        builder.add([disc(x, y, z, 0.66 * size, 12)], category, Material.SIGN_FACE)
    elif kind == 1:
        for scale, material in ((1.0, Material.SIGN), (0.55, Material.SIGN_FACE)):
            half = 0.52 * scale
            builder.add(
                [[(x - half, y - 0.8 * half, z), (x + half, y - 0.8 * half, z), (x, y + half, z)]],
                category,
                material,
                variant=1,
            )
    elif kind == 2:
        builder.add([disc(x, y, z, size, 8)], category, Material.SIGN, variant=1)
        builder.add(
            [upright(x - 0.27, x + 0.27, y - 0.09, y + 0.09, z)], category, Material.SIGN_FACE
        )
    elif kind == 3:
        builder.add([upright(x - 0.4, x + 0.4, y - 0.4, y + 0.4, z)], category, Material.SIGN)
        builder.add(
            [upright(x - 0.14, x + 0.14, y - 0.26, y + 0.26, z)], category, Material.SIGN_FACE
        )
    elif kind == 4:
        builder.add(
            [[(x - 0.5, y, z), (x, y - 0.5, z), (x + 0.5, y, z), (x, y + 0.5, z)]],
            category,
            Material.SIGN,
            variant=2,
        )
    else:
        variant = int(rng.choice([0, 3]))
        builder.add(
            [upright(x - 1.1, x + 1.1, y - 0.1, y + 0.9, z)],
            category,
            Material.SIGN,
            variant=variant,
        )
        bars = [upright(x - 0.85, x + 0.6, y + low, y + low + 0.14, z) for low in (0.18, 0.5)]
        builder.add(bars, category, Material.SIGN_FACE)


def add_wall(builder: Builder, rng: np.random.Generator, x: float, z0: float, z1: float) -> None:
    """Add a free-standing wall along the street (class wall)."""
    height = float(rng.uniform(1.3, 2.6))
    variant = int(rng.integers(0, 240))
    facing = Facing.LEFT if x > 0.0 else Facing.RIGHT
    thick = 0.35 if x > 0.0 else -0.35
    builder.at(z1)
    builder.add(
        [[(x, 0.0, z0), (x, height, z0), (x, height, z1), (x, 0.0, z1)]],
        Category.WALL,
        Material.CONCRETE,
        variant=variant,
        facing=facing,
        depth=0.5 * (z0 + z1),
    )
    builder.add(
        [upright(x, x + thick, 0.0, height, z0)], Category.WALL, Material.CONCRETE, variant=variant
    )
    cap = [(x, height - 0.14, z0), (x, height, z0), (x, height, z1), (x, height - 0.14, z1)]
    builder.add(
        [cap],
        Category.WALL,
        Material.CONCRETE,
        variant=variant,
        tone=1.18,
        facing=Facing.UP,
        depth=0.5 * (z0 + z1),
    )
    seams = []
    z = z0 + 3.0
    while z < z1:
        seams.append(
            [(x, 0.0, z), (x, height - 0.14, z), (x, height - 0.14, z + 0.15), (x, 0.0, z + 0.15)]
        )
        z += 3.0
    builder.add(
        seams,
        Category.WALL,
        Material.CONCRETE,
        variant=variant,
        tone=0.75,
        facing=facing,
        depth=0.5 * (z0 + z1),
    )


def add_fence(builder: Builder, rng: np.random.Generator, x: float, z0: float, z1: float) -> None:
    """Add a fence along the street: planks, pickets or rails (class fence)."""
    kind = int(rng.integers(0, 3))
    height = (1.7, 1.1, 1.25)[kind]
    variant = (0, 1, 2)[kind] if rng.random() < 0.7 else int(rng.integers(0, 3))
    facing = Facing.LEFT if x > 0.0 else Facing.RIGHT
    builder.at(z1)
    depth = 0.5 * (z0 + z1)
    material = Material.METAL if kind == 2 else Material.WOOD
    step = (0.5, 0.7, 1.6)[kind]
    fill = (0.94, 0.62, 0.14)[kind]
    num = max(1, min(60, int((z1 - z0) / step)))
    step = (z1 - z0) / num
    posts = [
        [
            (x, 0.0, z0 + i * step),
            (x, height, z0 + i * step),
            (x, height, z0 + (i + fill) * step),
            (x, 0.0, z0 + (i + fill) * step),
        ]
        for i in range(num)
    ]
    bands = {
        0: ((0.1, 0.4), (1.2, 1.5)),
        1: ((0.2, 0.5), (0.7, 0.95)),
        2: ((0.3, 0.5), (0.65, 0.85), (1.0, 1.25)),
    }[kind]
    rails = [[(x, low, z0), (x, high, z0), (x, high, z1), (x, low, z1)] for low, high in bands]
    builder.add(
        rails, Category.FENCE, material, variant=variant, tone=0.85, facing=facing, depth=depth
    )
    for parity, tone in ((0, 1.0), (1, 0.9)):
        builder.add(
            posts[parity::2],
            Category.FENCE,
            material,
            variant=variant,
            tone=tone,
            facing=facing,
            depth=depth,
        )


def add_bin(builder: Builder, rng: np.random.Generator, x: float, z: float) -> None:
    """Add unlabelled clutter: a litter bin or a stack of boxes (void)."""
    builder.at(z)
    variant = int(rng.integers(0, 240))
    builder.add(
        [[(x - 0.28, 0.0, z), (x + 0.28, 0.0, z), (x + 0.34, 1.0, z), (x - 0.34, 1.0, z)]],
        Category.VOID,
        Material.BIN,
        variant=variant,
    )
    builder.add(
        [upright(x - 0.38, x + 0.38, 0.92, 1.06, z)],
        Category.VOID,
        Material.BIN,
        variant=variant,
        tone=1.25,
        facing=Facing.UP,
    )
