"""SegFormer MiT-B5 on GTA with generated images, at 512x512 crops for 40,000 iterations.

accelerate launch segtrain/train.py configs/segtrain/segformer_gta.py --source GTA_DATASET \
    --generated GENERATED --generated-share 0.5 --init MIT_B5.safetensors --output DIR
Hardware: one 24 GB GPU. The schedule follows DGInStyle's (AdamW 6e-5, head 10 times that, linear
warm-up of 1,500 iterations, linear decay, batch 2). The paper starts from ImageNet weights;
segtrain/pretrained.py writes them for `--init`. Tests build this network; it has not
been trained.
"""

_base_ = ["./parts/data_gta.py", "./parts/schedule_gta.py", "./parts/segformer.py"]

model = dict(
    data_preprocessor={{_base_.data_preprocessor}},
    backbone=dict(embed_dims=64, num_layers=[3, 6, 40, 3], drop_path_rate=0.1),
    decode_head=dict(in_channels=[64, 128, 320, 512], channels=256),
)
