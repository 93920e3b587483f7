"""Mask2Former with MiT-B5 on GTA; the head uses transformers' modules and no compiled operators.

accelerate launch segtrain/train.py configs/segtrain/mask2former_gta.py --source GTA_DATASET \
    --generated GENERATED --generated-share 0.5 --init MIT_B5.safetensors --output DIR
Hardware: one 48 GB GPU. Cheng et al., CVPR 2022. Not run by us.
"""

_base_ = ["./segformer_gta.py"]

model = dict(
    decode_head=dict(
        _delete_=True,
        type="StreetforgeMask2FormerHead",
        in_channels=[64, 128, 320, 512],
        in_index=[0, 1, 2, 3],
        strides=[4, 8, 16, 32],
        feature_size=256,
        num_classes=19,
        align_corners=False,
    ),
)
optim_wrapper = dict(clip_grad=dict(_delete_=True, max_norm=0.01))  # as in the paper
