"""SegFormer MiT-B5 with Cityscapes as the source, as in DGInStyle's second table.

accelerate launch segtrain/train.py configs/segtrain/segformer_cityscapes.py \
    --source runs/data/cityscapes --generated GENERATED --generated-share 0.5 \
    --init MIT_B5.safetensors --output DIR
Hardware: one 24 GB GPU. Schedule and crops as segformer_gta.py. Frames of 2048x1024 are resized to
1024x512; generated crops keep their size. Tests build this network; it has not been trained.
"""

_base_ = ["./segformer_gta.py"]

data_root = "data/cityscapes"
source_scale = 0.5
sets = dict(source=dict(scale_factor=source_scale))
train_dataloader = dict(dataset=dict(data_root=data_root, scale_factor=source_scale))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = dict(dataset=dict(data_root=data_root))
