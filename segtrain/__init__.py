"""Trains and scores segmentation networks on source and generated pictures.

Recipes are mmsegmentation config files; accelerate is the engine; our own modules are plain torch
and are named to mmsegmentation in `segtrain.registry` alone.
"""
