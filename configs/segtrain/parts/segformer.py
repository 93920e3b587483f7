"""SegFormer without its sizes: MiT backbone and all-MLP head. A part of recipes."""

_base_ = ["./segmentor.py"]

model = dict(
    backbone=dict(
        type="MixVisionTransformer",
        in_channels=3,
        num_stages=4,
        num_heads=[1, 2, 5, 8],
        patch_sizes=[7, 3, 3, 3],
        sr_ratios=[8, 4, 2, 1],
        out_indices=(0, 1, 2, 3),
        mlp_ratio=4,
        qkv_bias=True,
    ),
    decode_head=dict(
        type="SegformerHead",
        in_index=[0, 1, 2, 3],
        dropout_ratio=0.1,
        num_classes=19,
        norm_cfg=dict(type="BN", requires_grad=True),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", loss_weight=1.0, avg_non_ignore=False),
    ),
)
