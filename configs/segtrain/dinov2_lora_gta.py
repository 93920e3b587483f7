"""DINOv2-B with LoRA on queries and values and a UPerNet head, on GTA.

accelerate launch segtrain/train.py configs/segtrain/dinov2_lora_gta.py --source GTA_DATASET \
    --generated GENERATED --generated-share 0.5 --init DINOV2_B.safetensors --output DIR
Hardware: one 24 GB GPU. Weights: segtrain/pretrained.py --weights with a pinned revision of
facebook/dinov2-base. Not run by us.
"""

_base_ = ["./dinov2_gta.py"]

model = dict(
    backbone=dict(
        architecture=dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12),
        out_layers=(2, 5, 8, 11),
        training="lora",
        rank=16,
    ),
    decode_head=dict(
        _delete_=True,
        type="UPerHead",
        in_channels=[768, 768, 768, 768],
        in_index=[0, 1, 2, 3],
        channels=256,
        dropout_ratio=0.1,
        num_classes=19,
        norm_cfg=dict(type="BN", requires_grad=True),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", loss_weight=1.0, avg_non_ignore=False),
    ),
)
