"""hrda_shade_pocket.py with emphasis on uncertain boundary pixels of generated images.

accelerate launch segtrain/train.py configs/segtrain/flexseg_hrda_pocket.py --source DIR \
    --generated DIR --generated-share 0.5 --output DIR
Hardware: two CPU cores. Needs the extra `imagenet`. Not run by us at full length.
"""

_base_ = ["./hrda_shade_pocket.py"]

model = dict(boundary=dict(weight=1.0, radius_px=4, sets=("generated",)))
