"""VPD on the pocket model: clean pass, attention maps of the classes, text adapter, FPN head.

accelerate launch segtrain/train.py configs/segtrain/vpd_pocket.py --source DIR --output DIR
Hardware: two CPU cores. As in the paper (Zhao et al., ICCV 2023), the whole U-Net is trained at a
tenth of the learning rate. Unlike in the paper, latents are scaled by the model's factor, and
attention maps have the aspect ratio of the image.
"""

_base_ = ["./diffusion_pocket.py"]

attention = "transformer_blocks.0.attn2:maps"
norm_cfg = dict(type="BN", requires_grad=True)
model = dict(
    backbone=dict(
        training=dict(part="full"),
        features=dict(
            taps=[
                "up_blocks.2",
                "up_blocks.1.resnets.1",
                "up_blocks.0.resnets.1",
                f"up_blocks.1.attentions.0.{attention}",
                f"up_blocks.1.attentions.1.{attention}",
                f"up_blocks.0.attentions.0.{attention}",
                f"up_blocks.0.attentions.1.{attention}",
            ],
            aggregation="concat",
        ),
        text=dict(categories="eos", adapter=True),
    ),
    # channels of the tap and of the 19 classes, at strides 4, 8 and 16
    neck=dict(in_channels=[64, 96 + 19, 128 + 19]),
    decode_head=dict(
        _delete_=True,
        type="FPNHead",
        in_channels=[64, 64, 64],
        in_index=[0, 1, 2],
        feature_strides=[4, 8, 16],
        channels=64,
        dropout_ratio=0.1,
        num_classes=19,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", loss_weight=1.0, avg_non_ignore=False),
    ),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={"backbone.extractor": dict(lr_mult=0.1)}))
