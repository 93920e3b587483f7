"""Scene prompts for Pocket City, the source first. A part of recipes."""

scenes = [
    "a city street scene, in a video game by day",
    "a city street scene, in sunny weather by day",
    "a city street scene, in overcast weather by day",
    "a city street scene, in rainy weather by day",
    "a city street scene, in foggy weather by day",
    "a city street scene, in snowy weather by day",
    "a city street scene, in clear weather at night",
    "a city street scene, in rainy weather at night",
    "a city street scene, in hazy weather at dawn",
    "a city street scene, in clear weather at dusk",
]
