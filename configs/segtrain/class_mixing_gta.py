"""daformer_gta.py with DACS class mixing between source and generated images.

accelerate launch segtrain/train.py configs/segtrain/class_mixing_gta.py --source GTA_DATASET \
    --generated GENERATED --generated-share 0.5 --rare-classes.enabled \
    --init MIT_B5.safetensors --output DIR
Hardware: one 24 GB GPU. Tranheden et al., WACV 2021. Not run by us.
"""

_base_ = ["./daformer_gta.py"]

class_mixing = dict(probability=0.5)
