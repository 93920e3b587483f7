"""Unseen looks with labels for scoring, partly outside the ranges of the collection.

`TARGETS` play real test sets and are scored for final tables only. `DEVELOPMENT` is a sixth set,
with palette, light and camera of its own, on which every choice is made.
"""

from dataclasses import replace

from pipeline.pocket.collection import LOOKS
from pipeline.pocket.geometry import Camera
from pipeline.pocket.look import Look
from pipeline.pocket.materials import Material

_LOW = Camera(focal=(0.9, 1.05), height_m=(1.2, 1.35), horizon=(0.40, 0.45), shift=(-0.04, 0.04),
              hood=0.9, curve=0.0012)
_DASH = Camera(focal=(0.66, 0.85), height_m=(1.25, 1.6), horizon=(0.46, 0.56),
               shift=(-0.06, 0.06), hood=0.55)
_MANY = Camera(focal=(0.55, 1.2), height_m=(1.2, 2.7), horizon=(0.34, 0.6), shift=(-0.16, 0.16),
               hood=0.15, curve=0.004)
_ACDC = Camera(focal=(0.8, 0.95), height_m=(1.4, 1.6), horizon=(0.42, 0.5), hood=0.3)

TARGETS: dict[str, Look] = {
    "cityscapes": replace(
        LOOKS["overcast"], name="cityscapes", weather_phrase="in grey weather",
        sky_top=(190, 204, 200), sky_low=(216, 224, 216), fog_color=(176, 190, 180),
        tint=(0.86, 1.0, 0.9), ambient=(0.56, 0.74), sun=(0.0, 0.22), saturation=(0.42, 0.7),
        contrast=(0.9, 1.12), noise=(2.0, 4.5), blur=(0.3, 0.7), camera=_LOW),
    "bdd100k": replace(
        LOOKS["clear"], name="bdd100k", weather_phrase="in mixed weather",
        sky_top=(150, 178, 208), sky_low=(226, 226, 220), haze=(0.1, 1.3), sun=(0.0, 0.6),
        ambient=(0.34, 0.8), clouds=(0.0, 1.0), wet=(0.0, 0.5), glass=(0.2, 0.7),
        headlights=(0.0, 0.7), lamps=(0.0, 0.4), windows=(0.0, 0.4), contrast=(0.85, 1.3),
        gamma=(0.8, 1.3), saturation=(0.5, 1.0), noise=(3.0, 7.0), blur=(0.3, 0.9),
        jitter=(0.03, 0.12), vignette=(0.1, 0.35), camera=_DASH),
    "mapillary": replace(
        LOOKS["clear"], name="mapillary", weather_phrase="in varied weather",
        sky_top=(140, 172, 216), sky_low=(220, 228, 234), haze=(0.1, 1.4), sun=(0.0, 0.65),
        ambient=(0.5, 0.85), clouds=(0.0, 1.0), autumn=(0.0, 0.8), wet=(0.0, 0.4),
        contrast=(0.75, 1.3), gamma=(0.75, 1.3), saturation=(0.35, 1.35), noise=(1.0, 7.0),
        blur=(0.0, 1.0), jitter=(0.02, 0.16), fade=(0.0, 0.35), vignette=(0.0, 0.4),
        camera=_MANY),
    "acdc_fog": replace(
        LOOKS["fog"], name="acdc_fog", haze=(2.8, 6.5), fog_color=(186, 194, 196),
        sky_top=(182, 190, 194), sky_low=(190, 198, 200), ambient=(0.55, 0.75),
        noise=(2.0, 5.0), camera=_ACDC),
    "acdc_night": replace(
        LOOKS["night"], name="acdc_night", ambient=(0.13, 0.22), tint=(1.1, 0.92, 0.78),
        sky_top=(12, 11, 12), sky_low=(42, 34, 28), fog_color=(34, 28, 24), noise=(4.0, 9.0),
        blur=(0.3, 0.8), camera=_ACDC),
    "acdc_rain": replace(
        LOOKS["rain"], name="acdc_rain", glass=(0.2, 0.7), haze=(0.6, 1.8), ambient=(0.42, 0.66),
        contrast=(0.85, 1.1), blur=(0.4, 1.0), noise=(2.0, 6.0), camera=_ACDC),
    "acdc_snow": replace(
        LOOKS["snow"], name="acdc_snow", snow=(0.55, 0.95), haze=(0.4, 2.2), ambient=(0.6, 0.85),
        tint=(0.92, 0.97, 1.04), blur=(0.3, 0.8), noise=(2.0, 6.0), camera=_ACDC),
    "dark_zurich": replace(
        LOOKS["night"], name="dark_zurich", ambient=(0.1, 0.15), tint=(1.0, 0.95, 0.86),
        sky_top=(7, 9, 16), sky_low=(34, 31, 36), fog_color=(24, 22, 24), lamps=(0.35, 0.7),
        windows=(0.2, 0.55), headlights=(0.5, 0.9), noise=(6.0, 11.0), blur=(0.4, 0.9),
        saturation=(0.55, 0.85), camera=_ACDC),
}

_VAN = Camera(focal=(0.6, 0.74), height_m=(2.0, 2.5), horizon=(0.33, 0.41), shift=(0.03, 0.14),
              hood=0.4, curve=0.0032)
_BRICK = (
    (Material.ASPHALT, (126, 116, 110)), (Material.PAVING, (142, 134, 140)),
    (Material.ROOF, (88, 96, 112)), (Material.GRASS, (122, 138, 62)),
)
_DEV_DAY = replace(
    LOOKS["clear"], name="dev_day", weather_phrase="in changing weather", time_phrase="by day",
    sky_top=(116, 150, 186), sky_low=(226, 218, 206), fog_color=(208, 202, 196),
    tint=(1.05, 0.98, 0.94), sun=(0.1, 0.5), ambient=(0.46, 0.78), clouds=(0.2, 0.9),
    haze=(0.3, 1.0), contrast=(0.85, 1.15), gamma=(0.85, 1.2), saturation=(0.55, 0.95),
    noise=(2.0, 5.5), blur=(0.1, 0.7), jitter=(0.01, 0.08), vignette=(0.05, 0.3),
    camera=_VAN, overrides=_BRICK)

DEVELOPMENT: dict[str, Look] = {
    look.name: look
    for look in (
        _DEV_DAY,
        replace(_DEV_DAY, name="dev_fog", weather_phrase="in foggy weather",
                sky_top=(176, 180, 190), sky_low=(196, 196, 200), fog_color=(188, 188, 194),
                sun=(0.0, 0.06), ambient=(0.56, 0.8), clouds=(0.0, 0.2), haze=(2.0, 5.2),
                headlights=(0.0, 0.6), lamps=(0.0, 0.4), saturation=(0.4, 0.7)),
        replace(_DEV_DAY, name="dev_night", weather_phrase="in clear weather",
                time_phrase="at night", sky_top=(16, 12, 30), sky_low=(52, 38, 50),
                fog_color=(40, 32, 42), tint=(1.0, 0.86, 0.96), sun=(0.0, 0.0),
                ambient=(0.12, 0.2), clouds=(0.0, 0.6), haze=(0.1, 0.5), lamps=(0.5, 1.0),
                windows=(0.3, 0.9), headlights=(0.6, 1.0), noise=(3.0, 8.0)),
        replace(_DEV_DAY, name="dev_rain", weather_phrase="in rainy weather",
                sky_top=(98, 106, 122), sky_low=(150, 156, 168), fog_color=(142, 146, 158),
                sun=(0.0, 0.08), ambient=(0.44, 0.7), wet=(0.5, 1.0), rain=(0.3, 1.0),
                glass=(0.1, 0.6), headlights=(0.2, 0.8), windows=(0.0, 0.4),
                saturation=(0.5, 0.8), blur=(0.2, 0.9)),
        replace(_DEV_DAY, name="dev_snow", weather_phrase="in snowy weather",
                sky_top=(170, 178, 196), sky_low=(210, 212, 222), fog_color=(206, 208, 218),
                tint=(0.98, 0.98, 1.02), sun=(0.0, 0.16), ambient=(0.6, 0.86),
                snow=(0.45, 0.9), flakes=(0.1, 0.8), haze=(0.4, 1.8), saturation=(0.5, 0.8)),
    )
}
