"""DINOv2-S, frozen, with a linear head, on GTA: the cheapest use of foundation features.

accelerate launch segtrain/train.py configs/segtrain/dinov2_linear_gta.py --source GTA_DATASET \
    --generated GENERATED --generated-share 0.5 --init DINOV2_S.safetensors --output DIR
Hardware: one 8 GB GPU. Weights: segtrain/pretrained.py --weights with a pinned revision of
facebook/dinov2-small. Not run by us.
"""

_base_ = ["./dinov2_gta.py"]

model = dict(
    backbone=dict(
        architecture=dict(hidden_size=384, num_hidden_layers=12, num_attention_heads=6),
        out_layers=(2, 5, 8, 11),
        training="frozen",
    ),
    decode_head=dict(
        _delete_=True,
        type="FCNHead",
        in_channels=384,
        in_index=2,
        channels=384,
        num_convs=0,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=19,
        norm_cfg=dict(type="BN", requires_grad=True),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", loss_weight=1.0, avg_non_ignore=False),
    ),
)
