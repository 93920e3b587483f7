"""Frozen pocket diffusion U-Net, one clean pass, FPN, and a small Mask2Former head.

accelerate launch segtrain/train.py configs/segtrain/mask2former_pocket.py --source DIR --output DIR
Hardware: two CPU cores.
"""

_base_ = ["./diffusion_pocket.py"]

model = dict(
    decode_head=dict(
        _delete_=True,
        type="StreetforgeMask2FormerHead",
        in_channels=[64, 64, 64],
        in_index=[0, 1, 2],
        strides=[4, 4, 8],
        num_classes=19,
        align_corners=False,
        feature_size=64,
        encoder_feedforward_dim=128,
        dim_feedforward=256,
        encoder_layers=2,
        decoder_layers=4,
        num_attention_heads=4,
        num_queries=40,
        train_num_points=1024,
    ),
)
