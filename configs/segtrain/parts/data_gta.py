"""GTA and generated images in crops of 512x512, as in DGInStyle. A part of recipes."""

_base_ = ["./data_pocket.py"]

crop_size = (512, 512)
data_root = "data/gta"
source_scale = 1280 / 1914  # GTA's frames of 1914x1052 are resized to 1280x704

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
test_resolution = "low"  # prepared targets are scored at `eval_low_px` of their protocol
sets = dict(  # scale of the objects of each set, as in DGInStyle
    source=dict(scale_factor=source_scale),
    generated=dict(scale_factor=1.0),  # crops at the resolution of the source, not resized
    dginstyle=dict(scale_factor=source_scale),  # released set: objects at the source's size
    target=dict(scale_factor=0.5),  # unlabelled images of self-training: 2048x1024 to 1024x512
)
train_dataloader = dict(batch_size=2, dataset=dict(data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = val_dataloader

data_preprocessor = dict(size=crop_size)
