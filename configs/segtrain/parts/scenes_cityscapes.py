"""Scene prompts for Cityscapes and Stable Diffusion, the source first. A part of recipes."""

scenes = [
    "a photo of a street scene in a German city by day",
    "a photo of a street scene in an American city, on an overcast day",
    "a photo of a street scene in heavy rain, with a wet road",
    "a photo of a street scene in dense fog",
    "a photo of a street scene in winter, with snow on the road",
    "a photo of a street scene at night, lit by street lamps",
    "a photo of a street scene at night in the rain",
    "a photo of a street scene at dawn, with the sun low",
    "a photo of a street scene at dusk",
]
