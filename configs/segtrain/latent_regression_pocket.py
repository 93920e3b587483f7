"""The pocket model as a one-step regressor of label latents, after StableMTL.

accelerate launch segtrain/train.py configs/segtrain/latent_regression_pocket.py --source DIR \
    [--generated DIR --generated-share 0.5] --output DIR
Hardware: two CPU cores; one network evaluation per image, and the autoencoder's decoder in tests.
Not run by us at full length.
"""

_base_ = ["./diffusion_pocket.py"]

model = dict(
    backbone=dict(
        training=dict(part="full"),
        features=dict(
            taps=["conv_out"],  # the output of the U-Net
            trajectory=dict(type="clean", timestep=999),
            aggregation="concat",
        ),
    ),
    neck=None,
    decode_head=dict(
        _delete_=True,
        type="StreetforgeLatentRegressionHead",
        in_channels=8,
        channels=6,
        num_classes=19,
        align_corners=False,
    ),
)
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=None)
