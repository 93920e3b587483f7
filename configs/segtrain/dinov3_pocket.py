"""A vision transformer of DINOv3's architecture at pocket size, trained whole, from random weights.

accelerate launch segtrain/train.py configs/segtrain/dinov3_pocket.py --source DIR \
    [--generated DIR --generated-share 0.5] --output DIR
Hardware: two CPU cores. finetune/backbone.py has weights for DINOv2's architecture only; with
--init and weights of this one, training="frozen" keeps them. Not run by us at full length.
"""

_base_ = ["./dinov2_pocket.py"]

model = dict(
    backbone=dict(
        architecture=dict(
            _delete_=True,
            model_type="dinov3_vit",
            hidden_size=192,
            intermediate_size=768,
            num_hidden_layers=6,
            num_attention_heads=3,
            num_register_tokens=4,
            patch_size=8,
        ),
        training="full",
    ),
)
