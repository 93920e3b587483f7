"""The vision transformer of dinov2_pocket.py with LoRA on queries and values and a UPerNet head.

accelerate launch segtrain/train.py configs/segtrain/dinov2_lora_pocket.py --source DIR \
    [--generated DIR --generated-share 0.5] --init weights/backbone.safetensors --output DIR
Hardware: two CPU cores. Weights: as for dinov2_pocket.py. Not run by us at full length.
"""

_base_ = ["./dinov2_pocket.py"]

model = dict(
    backbone=dict(training="lora", rank=8),
    decode_head=dict(
        _delete_=True,
        type="UPerHead",
        in_channels=[192, 192, 192, 192],
        in_index=[0, 1, 2, 3],
        channels=64,
        dropout_ratio=0.1,
        num_classes=19,
        norm_cfg=dict(type="BN", requires_grad=True),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", loss_weight=1.0, avg_non_ignore=False),
    ),
)
