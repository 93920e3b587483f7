"""DAFormer MiT-B5 on GTA with generated images: fusion head, ImageNet feature distance, warm-up.

accelerate launch segtrain/train.py configs/segtrain/daformer_gta.py --source GTA_DATASET \
    --generated GENERATED --generated-share 0.5 --rare-classes.enabled \
    --init MIT_B5.safetensors --output DIR
Hardware: one 24 GB GPU. Hoyer et al., CVPR 2022; schedule and crops as in DGInStyle, whose mIoU on
five targets is 46.5 (42.2 without generated images). Not run by us.
"""

_base_ = ["./segformer_gta.py"]

model = dict(
    type="StreetforgeSegmentor",
    feature_distance=dict(weight=0.005, min_share=0.75),  # thing classes, from initial weights
    decode_head=dict(type="StreetforgeDAFormerHead", embed_dims=256, dilations=(1, 6, 12, 18)),
)
