"""SegFormer MiT-B5 on GTA with generated pictures, at 512x512 crops for 40,000 iterations.

accelerate launch segtrain/train.py configs/segtrain/segformer_gta.py --source GTA_DATASET \
    --generated GENERATED --generated-share 0.5 --backbone-weights MIT_B5.safetensors --output DIR
Hardware: one 24 GB GPU. The schedule follows DGInStyle's (AdamW 6e-5, head 10 times that, linear
warm-up of 1,500 iterations, linear decay, batch 2). The paper starts from ImageNet weights:
`--backbone-weights` takes them as safetensors with the names of mmsegmentation's
MixVisionTransformer. This file has been parsed and built here; it has not been trained.
"""

_base_ = ["./segformer_pocket.py"]

crop_size = (512, 512)
max_iters = 40000
data_root = "data/gta"
source_scale = 1280 / 1914  # GTA's frames of 1914x1052 come to 1280x704

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="StreetforgeResize", scale_factor=source_scale),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(1024, 512), keep_ratio=True),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
test_resolution = "low"  # prepared targets: at their protocol's size for networks like this one
sets = dict(  # the scale at which each set's objects appear, as in DGInStyle
    source=dict(scale_factor=source_scale),
    generated=dict(scale_factor=1.0),  # crops of the source's own pixels, not resized
    target=dict(scale_factor=0.5),  # unlabelled pictures of self-training: 2048x1024 to 1024x512
)
train_dataloader = dict(batch_size=2, dataset=dict(data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = val_dataloader

model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(embed_dims=64, num_layers=[3, 6, 40, 3], drop_path_rate=0.1),
    decode_head=dict(in_channels=[64, 128, 320, 512], channels=256),
)

optim_wrapper = dict(
    optimizer=dict(lr=6e-5),
    paramwise_cfg=dict(
        custom_keys={
            "pos_block": dict(decay_mult=0.0),
            "norm": dict(decay_mult=0.0),
            "head": dict(lr_mult=10.0),
        }
    ),
    clip_grad=None,
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=False, begin=1500, end=max_iters),
]
train_cfg = dict(max_iters=max_iters, val_interval=4000)
