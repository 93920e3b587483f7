"""Pocket City (images of 128x256): sets, crops, transforms, loaders. A part of recipes."""

custom_imports = dict(imports=["segtrain.registry"], allow_failed_imports=False)
default_scope = "mmseg"

crop_size = (96, 160)
data_root = "runs/mine/source"
scale_factor = (0.75, 1.5)  # object size in the network's input / in the file, sampled per image

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
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
sets = dict(  # changes of `train_pipeline` for each named set
    source=dict(scale_factor=scale_factor),
    generated=dict(scale_factor=scale_factor),  # whole frames of the source's size
    target=dict(scale_factor=scale_factor),  # unlabelled images of self-training
)
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(type="StreetforgeDataset", data_root=data_root, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="StreetforgeDataset", data_root=data_root, pipeline=test_pipeline),
)
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_dataloader = val_dataloader
test_evaluator = val_evaluator

data_preprocessor = dict(
    type="SegDataPreProcessor",
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    pad_val=0,
    seg_pad_val=255,
    size=crop_size,
)

val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
