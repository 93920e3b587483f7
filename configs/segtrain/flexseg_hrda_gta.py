"""hrda_shade_gta.py with emphasis on uncertain boundary pixels of generated images, after FLEX-Seg.

accelerate launch segtrain/train.py configs/segtrain/flexseg_hrda_gta.py --source GTA_DATASET \
    --generated GENERATED --generated-share 0.2 --rare-classes.enabled \
    --rare-classes.min-crop-ratio 2.0 --init MIT_B5.safetensors --output DIR
Hardware: one 48 GB GPU. Kim et al., AAAI 2026, report 50.1 mIoU on five targets with DGInStyle's
images (49.0 without theirs), with two more parts that are not here. Not run by us.
"""

_base_ = ["./hrda_shade_gta.py"]

model = dict(boundary=dict(weight=1.0, radius_px=10, sets=("generated", "dginstyle")))
