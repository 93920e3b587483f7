"""Scene prompts for Cityscapes and Stable Diffusion, the source first. A part of recipes."""

_base_ = ["./scenes_gta.py"]

# The source is photographs of European cities, which stands for GTA's first two scenes.
scenes = ["a photo of a street scene in a German city by day", *_base_.scenes[2:]]
