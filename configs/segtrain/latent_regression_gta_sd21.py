"""Stable Diffusion 2.1 as a one-step regressor of label latents on GTA, after StableMTL.

accelerate launch segtrain/train.py configs/segtrain/latent_regression_gta_sd21.py \
    --base SD21_FOLDER --source GTA_DATASET --generated DIR --generated-share 0.5 --output DIR
Hardware: a GPU with 40 GB, since the whole U-Net learns. StableMTL (CVPR 2026) reaches 55.8 mIoU on
real images with several tasks, trained on synthetic images. Built at toy size; it has not been
trained.
"""

_base_ = ["./vpd_gta_sd21.py"]

model = dict(
    backbone=dict(
        features=dict(
            taps=["conv_out"],  # the output of the U-Net
            trajectory=dict(type="clean", timestep=999),
        ),
        text=dict(_delete_=True),
    ),
    neck=None,
    decode_head=dict(
        _delete_=True,
        type="StreetforgeLatentRegressionHead",
        in_channels=4,
        channels=4,
        num_classes=19,
        align_corners=False,
    ),
)
optim_wrapper = dict(optimizer=dict(lr=3e-5), paramwise_cfg=dict(_delete_=True))
