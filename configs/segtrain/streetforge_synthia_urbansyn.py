"""Our combination with Stable Diffusion 1.5 and two synthetic sources, each at its own scale.

accelerate launch segtrain/train.py configs/segtrain/streetforge_synthia_urbansyn.py \
    --base SD15_FOLDER --source runs/data/synthia --sets urbansyn=runs/data/urbansyn:0.25 \
    --generated DIR --generated-share 0.5 --output DIR
Hardware: as streetforge_gta.py. SYNTHIA's frames of 1280x760 keep their size, UrbanSyn's of
2048x1024 are resized to 1024x512. Tests build it at toy size; it has not been trained.
"""

_base_ = ["./streetforge_gta.py"]

data_root = "data/synthia"
source_scale = 1.0
sets = dict(source=dict(scale_factor=source_scale), urbansyn=dict(scale_factor=0.5))
train_dataloader = dict(dataset=dict(data_root=data_root, scale_factor=source_scale))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = dict(dataset=dict(data_root=data_root))
