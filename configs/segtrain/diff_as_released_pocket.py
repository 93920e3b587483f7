"""DIFF as released, with its faults, on the pocket model; for comparison with diff_pocket.py.

accelerate launch segtrain/train.py configs/segtrain/diff_as_released_pocket.py --source DIR \
    --output DIR
Hardware: two CPU cores; 37 network evaluations per image at batch size two, and at up to seven in
the conditional branch of IPKL. The faults are listed in docs/segmentation.md. Unlike the release,
noise and latent are sampled with a fixed seed.
"""

_base_ = ["./diff_pocket.py"]

model = dict(
    backbone=dict(as_released=True, features=dict(trajectory=dict(eta=1.0, to_the_end=True))),
    ipkl=dict(
        classes=[1, 3, 12, 14, 16],  # sidewalk, wall, rider, truck, train
        max_classes=5,
        probability=1.0,
        stop_gradient=False,
    ),
)
