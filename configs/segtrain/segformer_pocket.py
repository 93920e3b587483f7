"""SegFormer of MiT-B0 size, from scratch, on Pocket City (images of 128x256).

accelerate launch segtrain/train.py configs/segtrain/segformer_pocket.py --output DIR \
    --source DIR [--generated DIR --generated-share 0.5]
Hardware: two CPU cores. Time: about 0.4 s per iteration (0.5 s on one core), 8 minutes in all.
"""

_base_ = ["./parts/data_pocket.py", "./parts/schedule_pocket.py"]

model = dict(
    backbone=dict(
        type="MixVisionTransformer",
        in_channels=3,
        embed_dims=32,
        num_stages=4,
        num_layers=[2, 2, 2, 2],
        num_heads=[1, 2, 5, 8],
        patch_sizes=[7, 3, 3, 3],
        sr_ratios=[8, 4, 2, 1],
        out_indices=(0, 1, 2, 3),
        mlp_ratio=4,
        qkv_bias=True,
        drop_path_rate=0.05,
    ),
    decode_head=dict(
        type="SegformerHead",
        in_channels=[32, 64, 160, 256],
        in_index=[0, 1, 2, 3],
        channels=128,
        dropout_ratio=0.1,
        num_classes=19,
        norm_cfg=dict(type="BN", requires_grad=True),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", loss_weight=1.0, avg_non_ignore=True),
    ),
)
