"""EfficientNet-Lite0 with ImageNet weights and DAFormer's fusion head, on Pocket City.

accelerate launch segtrain/train.py configs/segtrain/daformer_efficientnet_pocket.py \
    --source DIR [--generated DIR --generated-share 0.5] --rare-classes.enabled \
    --rare-classes.min-pixels 60 --output DIR
Hardware: two CPU cores. Needs the extra `imagenet`. Not run by us at full length.
"""

_base_ = ["./segformer_efficientnet_pocket.py"]

model = dict(
    decode_head=dict(type="StreetforgeDAFormerHead", embed_dims=64, channels=64),
)
