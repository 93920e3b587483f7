"""hrda_gta.py with SHADE's style hallucination, as DGInStyle trains its HRDA.

accelerate launch segtrain/train.py configs/segtrain/hrda_shade_gta.py --source GTA_DATASET \
    --generated GENERATED --generated-share 0.2 --rare-classes.enabled \
    --rare-classes.min-crop-ratio 2.0 --init MIT_B5.safetensors --output DIR
Hardware: one 48 GB GPU. Jia et al., ECCV 2024, report 49.0 mIoU on five targets (46.5 without
generated images). Not run by us.
"""

_base_ = ["./hrda_gta.py"]

model = dict(
    style_hallucination=dict(layer="layers.0.2", channels=64, num_styles=64, weight=10.0),
)
