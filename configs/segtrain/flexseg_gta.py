"""daformer_gta.py with emphasis on uncertain boundary pixels of generated images, after FLEX-Seg.

accelerate launch segtrain/train.py configs/segtrain/flexseg_gta.py --source GTA_DATASET \
    --generated GENERATED --generated-share 0.5 --rare-classes.enabled \
    --init MIT_B5.safetensors --output DIR
Hardware: one 24 GB GPU. Kim et al., AAAI 2026, report 48.6 mIoU on five targets with DGInStyle's
images (46.5 without their method); two further parts of the method are not implemented here. Not
run by us.
"""

_base_ = ["./daformer_gta.py"]

model = dict(boundary=dict(weight=1.0, radius_px=5, sets=("generated", "dginstyle")))
