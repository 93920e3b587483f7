"""DeepLabV3+ with ResNet-101 on GTA: separable ASPP with image pooling, and a fine decoder.

accelerate launch segtrain/train.py configs/segtrain/deeplabv3plus_gta.py --source GTA_DATASET \
    --generated GENERATED --generated-share 0.5 --init RESNET101.safetensors \
    --output DIR
Hardware: one 24 GB GPU. Chen et al., ECCV 2018, mmsegmentation's head. Not run by us.
"""

_base_ = ["./deeplabv2_gta.py"]

norm_cfg = dict(type="BN", requires_grad=True)
loss = dict(type="CrossEntropyLoss", loss_weight=1.0, avg_non_ignore=False)
model = dict(
    decode_head=dict(
        _delete_=True,
        type="DepthwiseSeparableASPPHead",
        in_channels=2048,
        in_index=3,
        channels=512,
        dilations=(1, 12, 24, 36),
        c1_in_channels=256,
        c1_channels=48,
        dropout_ratio=0.1,
        num_classes=19,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=loss,
    ),
    auxiliary_head=dict(
        type="FCNHead",
        in_channels=1024,
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=19,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(loss, loss_weight=0.4),
    ),
)
