"""HRDA with DAFormer's MiT-B5 on GTA: context of 1024x1024 at half size, detail crops of 512x512.

accelerate launch segtrain/train.py configs/segtrain/hrda_gta.py --source GTA_DATASET \
    --generated GENERATED --generated-share 0.2 --rare-classes.enabled \
    --rare-classes.min-crop-ratio 2.0 --init MIT_B5.safetensors --output DIR
Hardware: one 48 GB GPU. Hoyer et al., ECCV 2022; sizes as in DGInStyle, which adds SHADE
(hrda_shade_gta.py). Not run by us.
"""

_base_ = ["./daformer_gta.py"]

crop_size = (1024, 1024)
source_scale = 2560 / 1914  # GTA's frames of 1914x1052 are resized to 2560x1407
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
    dict(type="Resize", scale=(2048, 1024), keep_ratio=True),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
test_resolution = "high"
sets = dict(
    source=dict(scale_factor=source_scale),
    generated=dict(scale_factor=2.0),  # crops of 512x512 are resized to 1024x1024
    dginstyle=dict(scale_factor=source_scale),  # released set: objects at the source's size
    target=dict(scale_factor=1.0),
)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))

model = dict(
    type="StreetforgeHRDASegmentor",
    data_preprocessor=dict(size=crop_size),
    detail=dict(crop_size=(512, 512), loss_weight=0.1),
    attention_head=dict(
        type="SegformerHead",
        in_channels=[64, 128, 320, 512],
        in_index=[0, 1, 2, 3],
        channels=256,
        num_classes=19,
        norm_cfg=dict(type="BN", requires_grad=True),
        align_corners=False,
    ),
    test_cfg=dict(mode="slide", crop_size=crop_size, stride=(512, 512)),
)
