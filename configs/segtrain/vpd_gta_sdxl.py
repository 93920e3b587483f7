"""VPD with Stable Diffusion XL on GTA: three levels of its decoder, at strides 8, 16 and 32.

accelerate launch segtrain/train.py configs/segtrain/vpd_gta_sdxl.py --base SDXL_FOLDER \
    --source GTA_DATASET [--generated DIR --generated-share 0.5] --output DIR
Hardware: two GPUs with 80 GB, since all 2.6 billion weights of the U-Net are trained. LoRA fits one
GPU with 40 GB:
`--cfg-options model.backbone.training.part=lora model.backbone.training.checkpointing=True`.
Built at toy size, and its maps checked against the full-size model; it has not been trained.
"""

_base_ = ["./vpd_gta.py"]

maps = "transformer_blocks.0.attn2:maps"
model = dict(
    backbone=dict(
        base="stabilityai/stable-diffusion-xl-base-1.0@462165984030d82259a11f4367a4eed129e94a7b",
        features=dict(
            taps=[
                "up_blocks.2",
                "up_blocks.1.attentions.1",
                "up_blocks.0.attentions.1",
                f"up_blocks.1.attentions.0.{maps}",
                f"up_blocks.1.attentions.1.{maps}",
                f"up_blocks.1.attentions.2.{maps}",
                f"up_blocks.0.attentions.0.{maps}",
                f"up_blocks.0.attentions.1.{maps}",
                f"up_blocks.0.attentions.2.{maps}",
            ]
        ),
    ),
    # channels of the tap and of the 19 classes
    neck=dict(in_channels=[320, 640 + 19, 1280 + 19], num_outs=3),
    decode_head=dict(in_channels=[256] * 3, in_index=[0, 1, 2], feature_strides=[8, 16, 32]),
)
