"""Frozen pocket diffusion U-Net as backbone: one clean pass, three decoder taps, FPN, light head.

accelerate launch segtrain/train.py configs/segtrain/diffusion_pocket.py --output DIR \
    --source DIR [--generated DIR --generated-share 0.5] [--base pocket]
Hardware: two CPU cores. Only adapters, neck and head are trained and stored; the frozen weights are
loaded from the base model when the network is built.
"""

_base_ = ["./segformer_pocket.py"]

model = dict(
    type="StreetforgeDiffusionSegmentor",
    data_preprocessor=dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5]),
    backbone=dict(
        _delete_=True,
        type="StreetforgeDiffusionBackbone",
        base="pocket",
        features=dict(
            taps=["up_blocks.2", "up_blocks.1", "up_blocks.0"],  # finest first
            out_channels=64,
        ),
    ),
    neck=dict(type="FPN", in_channels=[64, 64, 64], out_channels=64, num_outs=3),
    decode_head=dict(in_channels=[64, 64, 64], in_index=[0, 1, 2]),
)
