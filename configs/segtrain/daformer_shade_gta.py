"""daformer_gta.py with SHADE's style hallucination, as DGInStyle trains its baselines.

accelerate launch segtrain/train.py configs/segtrain/daformer_shade_gta.py --source GTA_DATASET \
    --generated GENERATED --generated-share 0.5 --rare-classes.enabled \
    --init MIT_B5.safetensors --output DIR
Hardware: one 24 GB GPU. Zhao et al., ECCV 2022, report 52.2 mIoU on three targets with MiT-B5
trained on GTA only (DAFormer: 51.7). Not run by us.
"""

_base_ = ["./daformer_gta.py"]

model = dict(
    style_hallucination=dict(layer="layers.0.2", channels=64, num_styles=64, weight=10.0),
)
