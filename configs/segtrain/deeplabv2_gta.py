"""DeepLabV2 with ResNet-101 on GTA: dilated convolutions of rates 6 and 12 at stride 8.

accelerate launch segtrain/train.py configs/segtrain/deeplabv2_gta.py --source GTA_DATASET \
    --generated GENERATED --generated-share 0.5 --init RESNET101.safetensors \
    --output DIR
Hardware: one 24 GB GPU. Chen et al., TPAMI 2018, with the two rates that are usual in domain
generalization. Not run by us.
"""

_base_ = ["./parts/data_gta.py", "./parts/schedule_gta.py", "./parts/segmentor.py"]

norm_cfg = dict(type="BN", requires_grad=True)
model = dict(
    data_preprocessor={{_base_.data_preprocessor}},
    backbone=dict(
        type="ResNet",
        depth=101,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        dilations=(1, 1, 2, 4),
        strides=(1, 2, 1, 1),
        norm_cfg=norm_cfg,
        norm_eval=False,
        style="pytorch",
        contract_dilation=True,
    ),
    decode_head=dict(
        type="StreetforgeDeepLabV2Head",
        in_channels=2048,
        in_index=3,
        dilations=(6, 12),
        num_classes=19,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", loss_weight=1.0, avg_non_ignore=False),
    ),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(_delete_=True, head=dict(lr_mult=10.0))))
