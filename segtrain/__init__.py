"""Trains and scores segmentation networks on source and generated images.

Recipes are mmsegmentation config files; accelerate is the engine; our own modules are plain torch
and are named to mmsegmentation in `segtrain.registry` alone. Importing this package makes
mmsegmentation importable beside mmcv-lite, in any later order; see `segtrain.mmcv_stand_in`.
"""

from segtrain.mmcv_stand_in import install_stand_in

install_stand_in()
