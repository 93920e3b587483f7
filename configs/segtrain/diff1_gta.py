"""DIFF with Stable Diffusion 2.1 on GTA and one step: noise of t = 100, one pass.

accelerate launch segtrain/train.py configs/segtrain/diff1_gta.py --base SD21_FOLDER \
    --source GTA_DATASET [--generated DIR --generated-share 0.5] --output DIR
Hardware: a GPU with 24 GB. This file has been parsed and its taps checked against the full-size
model; it has not been trained.
"""

_base_ = ["./diff_gta.py"]

model = dict(
    backbone=dict(features=dict(trajectory=dict(_delete_=True, type="noised", timesteps=[100])))
)
train_dataloader = dict(batch_size=2)
