"""The labelled source look (`GAME`) and the looks of the captioned collection (`LOOKS`)."""

from dataclasses import replace

from pipeline.pocket.look import Look
from pipeline.pocket.materials import Material

_CLEAR = Look("clear", "in sunny weather", "by day", gain=(1.04, 1.14))
_NIGHT = replace(
    _CLEAR, name="night", weather_phrase="in clear weather", time_phrase="at night",
    sky_top=(8, 12, 30), sky_low=(40, 40, 62), fog_color=(34, 34, 52), tint=(0.82, 0.9, 1.16),
    sun=(0.0, 0.02), ambient=(0.17, 0.25), lamps=(0.8, 1.1), windows=(0.7, 1.0),
    headlights=(0.8, 1.0), noise=(2.0, 5.0), clouds=(0.0, 0.4), haze=(0.1, 0.3),
    saturation=(0.8, 1.05), vignette=(0.1, 0.25),
)
_SNOW = replace(
    _CLEAR, name="snow", weather_phrase="in snowy weather", time_phrase="by day",
    sky_top=(186, 194, 206), sky_low=(222, 226, 232), fog_color=(220, 224, 232),
    sun=(0.05, 0.15), ambient=(0.8, 0.92), snow=(0.75, 1.0), flakes=(0.3, 1.0), haze=(0.5, 1.0),
    clouds=(0.3, 0.7), saturation=(0.65, 0.9), tint=(0.97, 1.0, 1.05),
)
_RAIN = replace(
    _CLEAR, name="rain", weather_phrase="in rainy weather", time_phrase="by day",
    sky_top=(112, 122, 136), sky_low=(168, 176, 184), fog_color=(156, 164, 172),
    sun=(0.0, 0.06), ambient=(0.62, 0.74), wet=(0.75, 1.0), rain=(0.5, 1.0), haze=(0.7, 1.3),
    clouds=(0.5, 1.0), headlights=(0.5, 0.9), lamps=(0.0, 0.3), windows=(0.1, 0.4),
    saturation=(0.65, 0.9), tint=(0.95, 1.0, 1.06), blur=(0.2, 0.6), contrast=(1.05, 1.2),
)

LOOKS: dict[str, Look] = {
    look.name: look
    for look in (
        _CLEAR,
        replace(_CLEAR, name="overcast", weather_phrase="in overcast weather",
                sky_top=(168, 176, 186), sky_low=(206, 210, 214), fog_color=(196, 202, 208),
                sun=(0.0, 0.08), ambient=(0.76, 0.88), haze=(0.2, 0.6), clouds=(0.6, 1.0),
                saturation=(0.6, 0.85), tint=(0.98, 1.0, 1.02)),
        _RAIN,
        replace(_CLEAR, name="fog", weather_phrase="in foggy weather",
                sky_top=(196, 202, 208), sky_low=(212, 216, 220), fog_color=(206, 210, 214),
                sun=(0.0, 0.04), ambient=(0.74, 0.86), haze=(2.4, 4.5), clouds=(0.0, 0.1),
                saturation=(0.5, 0.75), headlights=(0.2, 0.6), lamps=(0.0, 0.3), blur=(0.2, 0.7)),
        _SNOW,
        _NIGHT,
        replace(_CLEAR, name="dusk", weather_phrase="in clear weather", time_phrase="at dusk",
                sky_top=(58, 64, 124), sky_low=(250, 150, 92), fog_color=(206, 140, 122),
                tint=(1.02, 0.88, 1.0), sun_tint=(1.3, 0.8, 0.55), sun=(0.1, 0.22),
                ambient=(0.4, 0.52), haze=(0.3, 0.7), clouds=(0.3, 0.8), lamps=(0.4, 0.8),
                windows=(0.4, 0.8), headlights=(0.6, 0.9)),
        replace(_CLEAR, name="dawn", weather_phrase="in hazy weather", time_phrase="at dawn",
                sky_top=(136, 166, 214), sky_low=(255, 222, 168), fog_color=(240, 214, 186),
                tint=(1.08, 0.98, 0.92), sun_tint=(1.35, 1.0, 0.62), sun=(0.25, 0.4),
                ambient=(0.5, 0.6), haze=(0.9, 1.6), clouds=(0.1, 0.5), headlights=(0.2, 0.6),
                windows=(0.1, 0.3)),
        replace(_NIGHT, name="rainy_night", weather_phrase="in rainy weather", wet=(0.8, 1.0),
                rain=(0.5, 1.0), haze=(0.5, 1.0), sky_low=(46, 48, 62), blur=(0.3, 0.7)),
        replace(_NIGHT, name="snowy_night", weather_phrase="in snowy weather", snow=(0.75, 1.0),
                flakes=(0.5, 1.0), haze=(0.4, 0.8), sky_top=(34, 38, 58), sky_low=(74, 74, 92),
                fog_color=(66, 68, 88), ambient=(0.24, 0.32)),
        replace(_CLEAR, name="autumn", weather_phrase="in autumn weather", autumn=(0.85, 1.0),
                sky_top=(140, 172, 212), sky_low=(232, 226, 208), fog_color=(226, 216, 196),
                sun_tint=(1.12, 0.98, 0.8), tint=(1.04, 1.0, 0.93), haze=(0.3, 0.7)),
        replace(_CLEAR, name="dusty", weather_phrase="in dusty weather",
                sky_top=(214, 186, 140), sky_low=(236, 210, 164), fog_color=(228, 200, 152),
                tint=(1.12, 0.98, 0.76), sun=(0.25, 0.4), haze=(1.3, 2.4), clouds=(0.0, 0.2),
                saturation=(0.65, 0.85)),
        replace(_CLEAR, name="film", weather_phrase="as an old photograph",
                sky_top=(196, 190, 170), sky_low=(222, 214, 190), fog_color=(214, 204, 180),
                saturation=(0.1, 0.3), fade=(0.5, 0.8), noise=(5.0, 9.0), vignette=(0.4, 0.65),
                blur=(0.4, 0.8), tint=(1.1, 1.0, 0.82), contrast=(1.0, 1.2),
                ambient=(0.8, 0.95), gain=(1.1, 1.25)),
    )
}

GAME = Look(
    "game", "in a video game", "by day",
    sky_top=(52, 138, 240), sky_low=(150, 208, 250), fog_color=(150, 200, 240),
    sun=(0.42, 0.46), ambient=(0.7, 0.74), haze=(0.08, 0.16), clouds=(0.0, 0.25),
    texture=(0.12, 0.2), saturation=(1.45, 1.6), contrast=(1.08, 1.14), gamma=(0.98, 1.02),
    gain=(0.99, 1.01), noise=(0.0, 0.0), blur=(0.0, 0.05), vignette=(0.0, 0.0), jitter=(0.0, 0.0),
    overrides=(
        (Material.ASPHALT, (98, 96, 112)), (Material.GRASS, (96, 164, 52)),
        (Material.PAVING, (190, 172, 150)), (Material.FOLIAGE, (54, 128, 48)),
        (Material.FOLIAGE_LIGHT, (96, 168, 58)), (Material.FOLIAGE_DARK, (34, 88, 44)),
    ),
    place="city centre",
)
