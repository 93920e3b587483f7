"""DIFF with Stable Diffusion 2.1 on GTA and five steps of inversion, all kept.

accelerate launch segtrain/train.py configs/segtrain/diff5_gta.py --base SD21_FOLDER \
    --source GTA_DATASET [--generated DIR --generated-share 0.5] --output DIR
Hardware: a GPU with 48 GB at batch 1; the published training took 10.3 hours on an RTX A6000. This
file has been parsed and its taps checked against the full-size model; it has not been trained.
"""

_base_ = ["./diff_gta.py"]

model = dict(backbone=dict(features=dict(trajectory=dict(type="diff5"))))
