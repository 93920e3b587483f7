"""daformer_pocket.py with DACS class mixing between source and generated images.

accelerate launch segtrain/train.py configs/segtrain/class_mixing_pocket.py --source DIR \
    --generated DIR --generated-share 0.5 --output DIR
Hardware: two CPU cores. Needs the extra `imagenet`. Not run by us at full length.
"""

_base_ = ["./daformer_pocket.py"]

class_mixing = dict(probability=0.5)
