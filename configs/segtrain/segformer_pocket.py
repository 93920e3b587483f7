"""SegFormer of MiT-B0 size, from scratch, on Pocket City (images of 128x256).

accelerate launch segtrain/train.py configs/segtrain/segformer_pocket.py --output DIR \
    --source DIR [--generated DIR --generated-share 0.5]
Hardware: two CPU cores. Time: about 0.4 s per iteration (0.5 s on one core), 8 minutes in all.
"""

_base_ = ["./parts/data_pocket.py", "./parts/schedule_pocket.py", "./parts/segformer.py"]

model = dict(
    data_preprocessor={{_base_.data_preprocessor}},
    backbone=dict(embed_dims=32, num_layers=[2, 2, 2, 2], drop_path_rate=0.05),
    decode_head=dict(in_channels=[32, 64, 160, 256], channels=128),
)
