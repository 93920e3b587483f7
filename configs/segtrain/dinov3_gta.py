"""DINOv3-L, frozen, with Rein's tokens and a Mask2Former head, on GTA with generated images.

accelerate launch segtrain/train.py configs/segtrain/dinov3_gta.py --source GTA_DATASET \
    --generated GENERATED --generated-share 0.5 --init DINOV3_L.safetensors --output DIR
Hardware: one 24 GB GPU. Weights, after their licence is accepted: segtrain/pretrained.py --weights
facebook/dinov3-vitl16-pretrain-lvd1689m@ea8dc2863c51be0a264bab82070e3e8836b02d51. Not run by us.
"""

_base_ = ["./dinov2_gta.py"]

model = dict(
    backbone=dict(
        architecture=dict(
            _delete_=True,
            model_type="dinov3_vit",
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            num_register_tokens=4,
            patch_size=16,
        ),
    ),
)
