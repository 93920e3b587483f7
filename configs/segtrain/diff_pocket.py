"""DIFF on the pocket model: DDIM inversion in 37 steps, nine kept, fusion pyramid, DAFormer head.

accelerate launch segtrain/train.py configs/segtrain/diff_pocket.py --source DIR --output DIR
Hardware: two CPU cores; 34 network evaluations per image. This is the corrected version of DIFF (Ji
et al., ICASSP 2025); docs/segmentation.md lists the corrections, and diff_as_released_pocket.py has
the released version. `ipkl` configures IPKL, whose conditional branch receives all classes; None
switches it off.
"""

_base_ = ["./diffusion_pocket.py"]

hidden = "transformer_blocks.0"
norm_cfg = dict(type="BN", requires_grad=True)
model = dict(
    backbone=dict(
        features=dict(
            trajectory=dict(type="diff37"),
            taps=[
                "up_blocks.0.resnets.0.conv2",
                "up_blocks.0.resnets.1.conv2",
                "up_blocks.1.resnets.0.conv2",
                "up_blocks.1.resnets.1.conv2",
                "up_blocks.2.resnets.0.conv2",
                "up_blocks.2.resnets.1.conv2",
                f"up_blocks.0.attentions.0.{hidden}",
                f"up_blocks.0.attentions.1.{hidden}",
                f"up_blocks.1.attentions.0.{hidden}",
                f"up_blocks.1.attentions.1.{hidden}",
            ],
            aggregation="direct",
            out_channels=128,
            pyramid=[32, 64, 96, 128],
        ),
    ),
    neck=None,
    decode_head=dict(
        _delete_=True,
        type="StreetforgeDAFormerHead",
        in_channels=[32, 64, 96, 128],
        in_index=[0, 1, 2, 3],
        embed_dims=32,  # the head runs at half the image size and costs as much as the U-Net
        channels=32,
        dropout_ratio=0.1,
        num_classes=19,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", loss_weight=1.0, avg_non_ignore=False),
    ),
    ipkl=dict(kind="mse", weight=1.0, max_classes=4, probability=0.5),
)
optim_wrapper = dict(optimizer=dict(lr=3e-3))  # this head learns slowly with a lower rate
