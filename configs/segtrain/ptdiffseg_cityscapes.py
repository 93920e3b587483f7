"""PTDiffSeg with Stable Diffusion 1.5 and Cityscapes as the source, for Dark Zurich and ACDC.

accelerate launch segtrain/train.py configs/segtrain/ptdiffseg_cityscapes.py --base SD15_FOLDER \
    --source runs/data/cityscapes --output DIR
Hardware: a GPU with 24 GB. Gong et al., BMVC 2024; TADP reports 37.0 mIoU for it on Dark Zurich.
Frames of 2048x1024 are resized to 1024x512; the first scene prompt is that of the source. Tests
build it at toy size; it has not been trained.
"""

_base_ = ["./streetforge_cityscapes.py"]

model = dict(backbone=dict(training=dict(part="frozen"), text=dict(adapter=False)))
optim_wrapper = dict(paramwise_cfg=None)
