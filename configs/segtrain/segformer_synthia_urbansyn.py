"""SegFormer MiT-B5 with two synthetic sources, SYNTHIA and UrbanSyn, each at its own scale.

accelerate launch segtrain/train.py configs/segtrain/segformer_synthia_urbansyn.py \
    --source runs/data/synthia --sets urbansyn=runs/data/urbansyn:0.25 \
    --generated GENERATED --generated-share 0.5 --init MIT_B5.safetensors --output DIR
Hardware: one 24 GB GPU. Schedule and crops as segformer_gta.py. SYNTHIA's frames of 1280x760 keep
their size, UrbanSyn's of 2048x1024 are resized to 1024x512. mmengine's Runner trains on SYNTHIA
only. Tests build this network; it has not been trained.
"""

_base_ = ["./segformer_gta.py"]

data_root = "data/synthia"
source_scale = 1.0
sets = dict(source=dict(scale_factor=source_scale), urbansyn=dict(scale_factor=0.5))
train_dataloader = dict(dataset=dict(data_root=data_root, scale_factor=source_scale))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = dict(dataset=dict(data_root=data_root))
