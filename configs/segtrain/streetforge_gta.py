"""Our combination with Stable Diffusion 1.5 on GTA: VPD with scene prompts and randomization.

accelerate launch segtrain/train.py configs/segtrain/streetforge_gta.py --base SD15_FOLDER \
    --source GTA_DATASET --generated DIR --generated-share 0.5 --output DIR
Hardware: a GPU with 48 GB, since the whole U-Net is trained under two prompts; `part="lora"` fits
24 GB. The combination was chosen by scores on Pocket City. This file has been parsed and its taps
checked against the full-size model; it has not been trained.
"""

_base_ = ["./vpd_gta.py", "./parts/scenes_gta.py"]

model = dict(
    backbone=dict(text=dict(scenes={{_base_.scenes}})),
    prompt_randomization=dict(kind="kl", weight=1.0),
)
