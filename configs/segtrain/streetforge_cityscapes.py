"""Our combination with Stable Diffusion 1.5 and Cityscapes as the source.

accelerate launch segtrain/train.py configs/segtrain/streetforge_cityscapes.py --base SD15_FOLDER \
    --source runs/data/cityscapes --generated DIR --generated-share 0.5 --output DIR
Hardware: as streetforge_gta.py. Frames of 2048x1024 are resized to 1024x512; the first scene prompt
is that of the source. Tests build it at toy size; it has not been trained.
"""

_base_ = ["./vpd_gta.py", "./parts/scenes_cityscapes.py"]

data_root = "data/cityscapes"
source_scale = 0.5
sets = dict(source=dict(scale_factor=source_scale))
train_dataloader = dict(dataset=dict(data_root=data_root, scale_factor=source_scale))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = dict(dataset=dict(data_root=data_root))
model = dict(
    backbone=dict(text=dict(scenes={{_base_.scenes}})),
    prompt_randomization=dict(kind="kl", weight=1.0),
)
