"""Our combination with Stable Diffusion 2.1 on GTA: one pass, scene prompts, randomization, IPKL.

accelerate launch segtrain/train.py configs/segtrain/streetforge_gta.py --base SD21_FOLDER \
    --source GTA_DATASET --generated DIR --generated-share 0.5 --output DIR
Hardware: a GPU with 24 GB. Chosen on Pocket City, where it was measured; this file has been parsed
and its taps checked against the full-size model, it has not been trained.
"""

_base_ = ["./diff1_gta.py", "./parts/scenes_gta.py"]

model = dict(
    backbone=dict(
        trajectory=dict(timesteps=[50]),
        scenes={{_base_.scenes}},
    ),
    randomization=dict(kind="kl", weight=1.0),
)
