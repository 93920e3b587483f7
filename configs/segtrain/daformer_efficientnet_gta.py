"""EfficientNet-Lite0 with ImageNet weights and DAFormer's fusion head, on GTA.

accelerate launch segtrain/train.py configs/segtrain/daformer_efficientnet_gta.py \
    --source GTA_DATASET --generated GENERATED --generated-share 0.5 --rare-classes.enabled \
    --output DIR
Hardware: one 8 GB GPU. Needs the extra `imagenet`. Schedule and crops as segformer_gta.py. Not run
by us.
"""

_base_ = ["./segformer_efficientnet_gta.py"]

model = dict(decode_head=dict(type="StreetforgeDAFormerHead", embed_dims=256))
