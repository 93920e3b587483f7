"""HRDA on Pocket City: context at half size, detail crops of 96x160, DAFormer's parts.

accelerate launch segtrain/train.py configs/segtrain/hrda_pocket.py --source DIR \
    [--generated DIR --generated-share 0.5] --output DIR
Hardware: two CPU cores. Needs the extra `imagenet`. Crops and images are twice as large as in
daformer_pocket.py, so the context view has the same input size. Not run by us at full length.
"""

_base_ = ["./daformer_pocket.py"]

crop_size = (192, 320)
scale_factor = (1.5, 3.0)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="StreetforgeResize", scale_factor=scale_factor),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.85),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="StreetforgeResize", scale_factor=2.0),  # twice that of all other recipes
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
test_resolution = "high"
sets = dict(
    source=dict(scale_factor=scale_factor),
    generated=dict(scale_factor=scale_factor),
    target=dict(scale_factor=scale_factor),
)
train_dataloader = dict(batch_size=4, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))

model = dict(
    type="StreetforgeHRDASegmentor",
    data_preprocessor=dict(size=crop_size),
    detail=dict(crop_size=(96, 160), loss_weight=0.1),
    attention_head=dict(
        type="SegformerHead",
        in_channels=[24, 40, 112, 320],
        in_index=[0, 1, 2, 3],
        channels=32,
        num_classes=19,
        norm_cfg=dict(type="BN", requires_grad=True),
        align_corners=False,
    ),
)
