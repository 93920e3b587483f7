"""DINOv2-L, frozen, with Rein's tokens and a Mask2Former head, on GTA with generated images.

accelerate launch segtrain/train.py configs/segtrain/dinov2_gta.py --source GTA_DATASET \
    --generated GENERATED --generated-share 0.5 --init DINOV2_L.safetensors --output DIR
Hardware: one 24 GB GPU. Weights: segtrain/pretrained.py --weights
facebook/dinov2-large@47b73eefe95e8d44ec3623f8890bd894b6ea2d6c. Wei et al., CVPR 2024, whose tokens
are also linked to the queries, report 64.3 mIoU on three targets, trained on GTA only. Not run by
us.
"""

_base_ = ["./parts/data_gta.py", "./parts/schedule_gta.py", "./parts/segmentor.py"]

model = dict(
    data_preprocessor={{_base_.data_preprocessor}},
    backbone=dict(
        type="StreetforgeFoundationBackbone",
        architecture=dict(
            model_type="dinov2",
            hidden_size=1024,
            num_hidden_layers=24,
            num_attention_heads=16,
            patch_size=14,
            image_size=518,
        ),
        out_layers=(7, 11, 15, 23),
        training="rein",  # or frozen, lora, full
    ),
    decode_head=dict(
        type="StreetforgeMask2FormerHead",
        in_channels=[1024, 1024, 1024, 1024],
        in_index=[0, 1, 2, 3],
        strides=[4, 8, 16, 32],
        feature_size=256,
        num_classes=19,
        align_corners=False,
    ),
)
optim_wrapper = dict(
    optimizer=dict(lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(custom_keys=dict(_delete_=True, norm=dict(decay_mult=0.0))),
)
