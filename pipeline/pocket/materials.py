"""Surface materials of Pocket City: what a primitive is made of, and how it reacts to weather."""

from dataclasses import dataclass
from enum import IntEnum

Color = tuple[int, int, int]


class Material(IntEnum):
    """Material ids, 0-based and dense: they index the tables a look is turned into."""

    SKY = 0
    ASPHALT = 1
    PATCH = 2
    LANE_PAINT = 3
    PAVING = 4
    KERB = 5
    RAIL = 6
    GRASS = 7
    SHADOW = 8
    FACADE = 9
    TRIM = 10
    ROOF = 11
    WINDOW = 12
    WINDOW_LIT = 13
    DOOR = 14
    SHOP_GLASS = 15
    AWNING = 16
    CONCRETE = 17
    WOOD = 18
    METAL = 19
    LIGHT_HOUSING = 20
    LAMP_RED = 21
    LAMP_AMBER = 22
    LAMP_GREEN = 23
    LAMP_OFF = 24
    SIGN = 25
    SIGN_FACE = 26
    FOLIAGE = 27
    FOLIAGE_LIGHT = 28
    FOLIAGE_DARK = 29
    BARK = 30
    SKIN = 31
    HAIR = 32
    CLOTH = 33
    TROUSERS = 34
    CAR_PAINT = 35
    CAR_GLASS = 36
    TYRE = 37
    HUB = 38
    HEADLIGHT = 39
    TAILLIGHT = 40
    PLATE = 41
    BUS_PAINT = 42
    TRUCK_PAINT = 43
    TRAM_PAINT = 44
    BIKE = 45
    HOOD = 46
    BIN = 47
    STREET_LAMP = 48
    HILL = 49
    CABIN_GLASS = 50
    SOIL = 51


@dataclass(frozen=True)
class Surface:
    """Neutral daylight colours of a material and its weather response.

    palette: 8-bit RGB variants; snow: share of white under full snow (0..1);
    wet: darkening under full rain (0..1); texture: amplitude of the fine grain (0..1);
    glow: emitted 8-bit RGB when the lights are on, None for no emission.
    """

    palette: tuple[Color, ...]
    snow: float = 0.0
    wet: float = 0.1
    texture: float = 0.25
    glow: Color | None = None


FACADES: tuple[Color, ...] = (
    (196, 178, 150),
    (170, 160, 150),
    (150, 98, 78),
    (206, 196, 176),
    (132, 138, 146),
    (188, 152, 112),
    (164, 120, 100),
    (216, 208, 196),
)

SURFACES: dict[Material, Surface] = {
    Material.SKY: Surface(((200, 220, 240),), texture=0.0, wet=0.0),
    Material.ASPHALT: Surface(((104, 104, 108), (112, 110, 110), (96, 98, 104)), 0.72, 0.42, 0.4),
    Material.PATCH: Surface(((84, 84, 88), (122, 120, 118)), 0.6, 0.42, 0.4),
    Material.LANE_PAINT: Surface(((226, 226, 220), (228, 190, 70)), 0.35, 0.3, 0.3),
    Material.PAVING: Surface(((168, 160, 152), (150, 148, 150), (178, 158, 140)), 0.92, 0.3, 0.4),
    Material.KERB: Surface(((196, 192, 186),), 0.8, 0.25, 0.2),
    Material.RAIL: Surface(((70, 64, 62),), 0.15, 0.2, 0.2),
    Material.GRASS: Surface(((98, 132, 64), (112, 138, 70), (128, 130, 74)), 0.97, 0.15, 0.7),
    Material.SHADOW: Surface(((44, 44, 48),), 0.1, 0.3, 0.1),
    Material.FACADE: Surface(FACADES, 0.05, 0.14, 0.25),
    Material.TRIM: Surface(((222, 216, 204), (120, 112, 104)), 0.4, 0.1, 0.15),
    Material.ROOF: Surface(((142, 74, 58), (94, 90, 92), (112, 76, 64)), 0.95, 0.2, 0.3),
    Material.WINDOW: Surface(((62, 74, 90), (78, 92, 108), (48, 56, 70)), 0.0, 0.0, 0.15),
    Material.WINDOW_LIT: Surface(
        ((66, 78, 94), (82, 94, 106)), 0.0, 0.0, 0.1, glow=(255, 206, 122)
    ),
    Material.DOOR: Surface(((96, 62, 44), (58, 74, 66), (72, 72, 84)), 0.0, 0.1, 0.1),
    Material.SHOP_GLASS: Surface(
        ((88, 104, 116), (70, 86, 100)), 0.0, 0.0, 0.2, glow=(255, 226, 170)
    ),
    Material.AWNING: Surface(
        ((186, 52, 48), (44, 96, 148), (46, 120, 84), (212, 160, 58), (110, 60, 110)), 0.7, 0.1
    ),
    Material.CONCRETE: Surface(((168, 164, 156), (150, 108, 88), (182, 174, 158)), 0.2, 0.25, 0.5),
    Material.WOOD: Surface(((140, 104, 70), (186, 182, 174), (84, 96, 84)), 0.3, 0.2, 0.3),
    Material.METAL: Surface(((94, 98, 100), (72, 80, 78), (128, 130, 130)), 0.1, 0.1, 0.1),
    Material.LIGHT_HOUSING: Surface(((32, 34, 34),), 0.1, 0.0, 0.0),
    Material.LAMP_RED: Surface(((240, 48, 36),), 0.0, 0.0, 0.0, glow=(255, 40, 24)),
    Material.LAMP_AMBER: Surface(((248, 176, 32),), 0.0, 0.0, 0.0, glow=(255, 160, 20)),
    Material.LAMP_GREEN: Surface(((40, 220, 120),), 0.0, 0.0, 0.0, glow=(30, 255, 140)),
    Material.LAMP_OFF: Surface(((66, 62, 56),), 0.0, 0.0, 0.0),
    Material.SIGN: Surface(
        ((32, 84, 176), (204, 40, 36), (240, 190, 40), (30, 120, 76), (236, 236, 232)),
        0.15,
        0.0,
        0.0,
    ),
    Material.SIGN_FACE: Surface(((240, 240, 236),), 0.1, 0.0, 0.0),
    Material.FOLIAGE: Surface(
        ((66, 108, 48), (78, 116, 54), (58, 96, 58), (92, 118, 50)), 0.6, 0.2, 1.0
    ),
    Material.FOLIAGE_LIGHT: Surface(
        ((98, 142, 62), (112, 148, 68), (84, 126, 74), (124, 146, 62)), 0.8, 0.2, 0.9
    ),
    Material.FOLIAGE_DARK: Surface(
        ((42, 72, 36), (48, 78, 40), (38, 64, 42), (58, 76, 36)), 0.42, 0.2, 0.8
    ),
    Material.BARK: Surface(((84, 66, 50), (98, 84, 70)), 0.1, 0.2, 0.4),
    Material.SKIN: Surface(((224, 176, 144), (172, 120, 88), (112, 76, 56)), 0.0, 0.0, 0.0),
    Material.HAIR: Surface(((48, 36, 28), (110, 80, 44), (150, 140, 132)), 0.1, 0.0, 0.0),
    Material.CLOTH: Surface(
        (
            (178, 44, 44),
            (40, 74, 140),
            (56, 56, 64),
            (216, 210, 198),
            (198, 150, 52),
            (48, 112, 88),
            (128, 70, 116),
            (90, 100, 116),
        ),
        0.1,
        0.1,
        0.1,
    ),
    Material.TROUSERS: Surface(
        ((38, 44, 62), (54, 50, 50), (92, 84, 70), (62, 78, 108)), 0.0, 0.1, 0.1
    ),
    Material.CAR_PAINT: Surface(
        (
            (196, 200, 204),
            (52, 54, 60),
            (160, 34, 34),
            (40, 76, 136),
            (232, 232, 230),
            (116, 122, 128),
            (74, 96, 80),
            (184, 156, 96),
            (130, 140, 152),
            (28, 30, 36),
        ),
        0.1,
        0.0,
        0.05,
    ),
    Material.CAR_GLASS: Surface(((44, 52, 60), (58, 68, 78)), 0.05, 0.0, 0.05),
    Material.TYRE: Surface(((26, 26, 28),), 0.0, 0.0, 0.0),
    Material.HUB: Surface(((156, 160, 164),), 0.0, 0.0, 0.0),
    Material.HEADLIGHT: Surface(((238, 240, 240),), 0.0, 0.0, 0.0, glow=(255, 246, 216)),
    Material.TAILLIGHT: Surface(((190, 28, 28),), 0.0, 0.0, 0.0, glow=(255, 30, 20)),
    Material.PLATE: Surface(((226, 226, 216),), 0.0, 0.0, 0.0),
    Material.BUS_PAINT: Surface(
        ((206, 42, 40), (240, 196, 52), (44, 110, 170), (56, 140, 84)), 0.1, 0.0, 0.05
    ),
    Material.TRUCK_PAINT: Surface(
        ((228, 226, 220), (58, 96, 150), (190, 70, 46), (120, 128, 124), (218, 176, 70)),
        0.15,
        0.0,
        0.1,
    ),
    Material.TRAM_PAINT: Surface(
        ((232, 220, 190), (196, 48, 44), (54, 118, 96), (236, 196, 60)), 0.1, 0.0, 0.05
    ),
    Material.BIKE: Surface(((40, 42, 48), (150, 40, 40), (40, 80, 130)), 0.1, 0.0, 0.0),
    Material.HOOD: Surface(((52, 54, 58), (120, 122, 126), (30, 30, 32)), 0.0, 0.0, 0.05),
    Material.BIN: Surface(((84, 98, 82), (70, 76, 92), (170, 140, 60)), 0.5, 0.1, 0.1),
    Material.STREET_LAMP: Surface(((222, 222, 212),), 0.2, 0.0, 0.0, glow=(255, 220, 150)),
    Material.HILL: Surface(((92, 116, 96), (108, 124, 118)), 0.8, 0.1, 0.6),
    Material.CABIN_GLASS: Surface(((54, 66, 78),), 0.0, 0.0, 0.1, glow=(236, 230, 190)),
    Material.SOIL: Surface(((140, 118, 88),), 0.95, 0.25, 0.6),
}
