"""VPD with Stable Diffusion 1.5 on GTA: clean pass, attention maps of the classes, FPN head.

accelerate launch segtrain/train.py configs/segtrain/vpd_gta.py --base SD15_FOLDER \
    --source GTA_DATASET [--generated DIR --generated-share 0.5] --output DIR
Hardware: a GPU with 40 GB, since the whole U-Net is trained, at a tenth of the learning rate;
`part="lora"` fits 24 GB. The schedule is that of the paper (Zhao et al., ICCV 2023), shortened to
40,000 iterations at batch 2. This file has been parsed and its taps checked against the full-size
model; it has not been trained.
"""

_base_ = ["./segformer_gta.py"]

attention = "transformer_blocks.0.attn2:maps"
norm_cfg = dict(type="BN", requires_grad=True)
model = dict(
    type="StreetforgeDiffusionSegmentor",
    data_preprocessor=dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5]),
    backbone=dict(
        _delete_=True,
        type="StreetforgeDiffusionBackbone",
        base="stable-diffusion-v1-5/stable-diffusion-v1-5@451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
        training=dict(part="full"),
        features=dict(
            taps=[
                "up_blocks.3",
                "up_blocks.2.attentions.1",
                "up_blocks.1.attentions.1",
                "up_blocks.0.resnets.1",
                *(f"up_blocks.{b}.attentions.{n}.{attention}" for b in (2, 1) for n in range(3)),
            ],
            aggregation="concat",
        ),
        text=dict(categories="eos", adapter=True),
    ),
    neck=dict(type="FPN", in_channels=[320, 659, 1299, 1280], out_channels=256, num_outs=4),
    decode_head=dict(
        _delete_=True,
        type="FPNHead",
        in_channels=[256] * 4,
        in_index=[0, 1, 2, 3],
        feature_strides=[8, 16, 32, 64],
        channels=256,
        dropout_ratio=0.1,
        num_classes=19,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", loss_weight=1.0, avg_non_ignore=False),
    ),
)
optim_wrapper = dict(
    optimizer=dict(lr=8e-5, weight_decay=1e-3),
    paramwise_cfg=dict(
        _delete_=True,
        custom_keys={
            "backbone.extractor": dict(lr_mult=0.1),
            "norm": dict(decay_mult=0.0),
        },
    ),
)
