"""Things that stand along a street: lamps, traffic lights, signs, walls, fences, bins."""

import numpy as np

from pipeline.pocket.geometry import Builder, Category, Facing, bar, disc, upright
from pipeline.pocket.materials import Material


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
