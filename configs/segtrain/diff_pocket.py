"""DIFF on the pocket model: DDIM inversion in 37 steps, nine kept, fusion pyramid, DAFormer head.

accelerate launch segtrain/train.py configs/segtrain/diff_pocket.py --source DIR --output DIR
Hardware: two CPU cores; 34 network evaluations a picture. Corrected (Ji et al., ICASSP 2025, and
docs/segmentation.md on its faults); `faithful=True`, `eta=1.0` and `to_the_end=True` are the
published ones. IPKL, whose conditional branch sees all classes, is `knowledge`; None leaves it out.
"""

_base_ = ["./segformer_pocket.py"]

hidden = "transformer_blocks.0"
norm_cfg = dict(type="BN", requires_grad=True)
model = dict(
    type="StreetforgeDiffusionSegmentor",
    data_preprocessor=dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5]),
    backbone=dict(
        _delete_=True,
        type="StreetforgeDiffusionBackbone",
        base="pocket",
        trajectory=dict(
            type="inversion",
            targets=[
                1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23,
                26, 30, 34, 40, 45, 52, 60, 69, 80, 91, 105, 121, 139, 160,
            ],
            saved=[91, 52, 30, 22, 18, 14, 11, 7, 3],
        ),
        taps=[
            "up_blocks.0.resnets.0.conv2", "up_blocks.0.resnets.1.conv2",
            "up_blocks.1.resnets.0.conv2", "up_blocks.1.resnets.1.conv2",
            "up_blocks.2.resnets.0.conv2", "up_blocks.2.resnets.1.conv2",
            f"up_blocks.0.attentions.0.{hidden}", f"up_blocks.0.attentions.1.{hidden}",
            f"up_blocks.1.attentions.0.{hidden}", f"up_blocks.1.attentions.1.{hidden}",
        ],
        aggregation="direct",
        out_channels=128,
        pyramid=[32, 64, 96, 128],
    ),
    decode_head=dict(
        _delete_=True, type="StreetforgeDAFormerHead", in_channels=[32, 64, 96, 128],
        in_index=[0, 1, 2, 3], embed_dims=64, channels=64, dropout_ratio=0.1, num_classes=19,
        norm_cfg=norm_cfg, align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", loss_weight=1.0, avg_non_ignore=True),
    ),
    knowledge=dict(kind="mse", weight=1.0, paths=4),
)
