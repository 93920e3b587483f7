"""daformer_pocket.py with emphasis on uncertain boundary pixels of generated images.

accelerate launch segtrain/train.py configs/segtrain/flexseg_pocket.py --source DIR \
    --generated DIR --generated-share 0.5 --output DIR
Hardware: two CPU cores. Needs the extra `imagenet`. Not run by us at full length.
"""

_base_ = ["./daformer_pocket.py"]

model = dict(boundary=dict(weight=1.0, radius_px=2, sets=("generated",)))
