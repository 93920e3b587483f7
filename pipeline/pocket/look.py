"""A look: ranges of light, weather and camera, sampled for each (look, seed), and its caption."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from pipeline.captions import join_class_names
from pipeline.labels import CLASS_NAMES
from pipeline.pocket.geometry import Camera
from pipeline.pocket.materials import FACADES, Color, Material

MAX_CLASSES = 4  # named by a caption

Range = tuple[float, float]


@dataclass(frozen=True)
class Place:
    """A kind of town: its facade colours and the tint of its plants."""

    phrase: str
    facades: tuple[Color, ...]
    foliage_gain: tuple[float, float, float] = (1.0, 1.0, 1.0)


PLACES: dict[str, Place] = {
    "city centre": Place("in a city centre", FACADES),
    "suburb": Place(
        "in a suburb",
        (
            (228, 216, 190),
            (236, 230, 218),
            (206, 168, 140),
            (180, 190, 178),
            (214, 190, 150),
            (172, 104, 84),
        ),
        (1.06, 1.08, 0.9),
    ),
    "mountain village": Place(
        "in a mountain village",
        ((132, 92, 62), (236, 230, 216), (156, 112, 74), (222, 206, 174), (110, 78, 56)),
        (0.78, 0.92, 0.92),
    ),
    "industrial area": Place(
        "in an industrial area",
        (
            (138, 142, 146),
            (146, 86, 68),
            (112, 120, 128),
            (164, 160, 150),
            (128, 76, 62),
            (90, 106, 122),
        ),
        (1.0, 0.92, 0.82),
    ),
}


@dataclass(frozen=True)
class Look:
    """Light, weather and camera of an image.

    Colours are 8-bit RGB. Ranges: sun, ambient: light gains (1 is full daylight); haze: share of
    light lost in 100 m is 1 - exp(-haze); snow, wet, autumn, clouds, fade, glass: 0..1; rain,
    flakes: streaks and flakes per unit area, 0..1; lamps, windows, headlights: brightness of
    lights, 0 is off; noise: sensor noise in 8-bit steps; blur: sigma in 1/256 image widths;
    vignette: darkening of the corners, 0..1; jitter: spread of the white balance.
    """

    name: str
    weather_phrase: str
    time_phrase: str
    sky_top: Color = (96, 150, 220)
    sky_low: Color = (206, 224, 240)
    fog_color: Color = (204, 216, 228)
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    sun_tint: tuple[float, float, float] = (1.0, 0.98, 0.94)
    sun: Range = (0.4, 0.55)
    ambient: Range = (0.62, 0.72)
    haze: Range = (0.1, 0.35)
    clouds: Range = (0.1, 0.6)
    snow: Range = (0.0, 0.0)
    flakes: Range = (0.0, 0.0)
    wet: Range = (0.0, 0.0)
    rain: Range = (0.0, 0.0)
    autumn: Range = (0.0, 0.0)
    lamps: Range = (0.0, 0.0)
    windows: Range = (0.0, 0.0)
    headlights: Range = (0.0, 0.0)
    texture: Range = (0.7, 1.1)
    saturation: Range = (0.85, 1.1)
    contrast: Range = (0.95, 1.1)
    gamma: Range = (0.92, 1.08)
    gain: Range = (0.95, 1.05)
    fade: Range = (0.0, 0.0)
    glass: Range = (0.0, 0.0)
    noise: Range = (1.0, 3.0)
    blur: Range = (0.0, 0.4)
    vignette: Range = (0.0, 0.15)
    jitter: Range = (0.0, 0.03)
    overrides: tuple[tuple[Material, Color], ...] = ()
    place: str | None = None
    camera: Camera = Camera()


@dataclass(frozen=True)
class LookParameters:
    """One sample of a look: `values` has a number for every range field of `Look`."""

    look: Look
    place: Place
    values: dict[str, float]
    sun_side: float


RANGE_FIELDS = tuple(f.name for f in fields(Look) if f.type is Range or f.type == "Range")


def place_for(look: Look, seed: int) -> str:
    """Return the place key that `render` uses for (look, seed)."""
    if look.place is not None:
        return look.place
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, 3))))
    return tuple(PLACES)[int(rng.integers(0, len(PLACES)))]


def sample_parameters(look: Look, seed: int) -> LookParameters:
    """Sample the parameters of a look for one image."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, 2))))
    low, high = np.array([getattr(look, name) for name in RANGE_FIELDS]).T
    values = dict(zip(RANGE_FIELDS, rng.uniform(low, high).tolist(), strict=True))
    side = float(rng.choice([-1.0, 1.0]))
    return LookParameters(
        look=look, place=PLACES[place_for(look, seed)], values=values, sun_side=side
    )


def caption(scene_classes: Sequence[int], look: Look, place: str, *, seed: int = 0) -> str:
    """Return a caption that lists at most four of the class ids present, chosen by the seed.

    `place` is a key of PLACES; void (255) is left out.
    """
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, 4))))
    present = sorted({int(c) for c in scene_classes if int(c) < len(CLASS_NAMES)})
    rare_first = np.array([1.0 if c in (0, 1, 2, 10) else 2.0 for c in present])
    count = min(len(present), int(rng.integers(3, MAX_CLASSES + 1)))
    picked: list[int] = []
    if count:
        chosen = rng.choice(len(present), count, replace=False, p=rare_first / rare_first.sum())
        picked = [present[i] for i in sorted(chosen.tolist())]
    things = join_class_names(picked, ", ", " and ") or "houses"
    return f"a city street scene with {things}, {style_words(look, place)}"


def style_words(look: Look, place: str) -> str:
    """Return what a caption says of weather, time and place; `place` is a key of PLACES."""
    return f"{look.weather_phrase} {look.time_phrase}, {PLACES[place].phrase}"
