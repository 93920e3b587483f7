"""Our combination with Stable Diffusion XL on GTA: VPD with scene prompts and randomization.

accelerate launch segtrain/train.py configs/segtrain/streetforge_gta_sdxl.py --base SDXL_FOLDER \
    --source GTA_DATASET --generated DIR --generated-share 0.5 --output DIR
Hardware: as vpd_gta_sdxl.py with twice the memory, since each step runs under two prompts. Built at
toy size, and its maps checked against the full-size model; it has not been trained.
"""

_base_ = ["./vpd_gta_sdxl.py", "./parts/scenes_gta.py"]

model = dict(
    backbone=dict(text=dict(scenes={{_base_.scenes}})),
    prompt_randomization=dict(kind="kl", weight=1.0),
)
