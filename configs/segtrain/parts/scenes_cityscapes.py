"""Scene prompts for Cityscapes and Stable Diffusion, the source first. A part of recipes."""

_base_ = ["./scenes_gta.py"]

# The source consists of photographs of European cities; its scene replaces the first two of GTA.
scenes = ["a photo of a street scene in a German city by day", *_base_.scenes[2:]]
