"""The frozen vision transformer of dinov2_pocket.py with a linear head: a probe of its features.

accelerate launch segtrain/train.py configs/segtrain/dinov2_linear_pocket.py --source DIR \
    --init weights/backbone.safetensors --output DIR
Hardware: two CPU cores.
"""

_base_ = ["./dinov2_pocket.py"]

model = dict(
    decode_head=dict(
        _delete_=True,
        type="FCNHead",
        in_channels=192,
        in_index=2,
        channels=192,
        num_convs=0,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=19,
        norm_cfg=dict(type="BN", requires_grad=True),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", loss_weight=1.0, avg_non_ignore=False),
    ),
)
