"""DIFF as released, with its faults, on the pocket model; for comparison with diff_pocket.py.

accelerate launch segtrain/train.py configs/segtrain/diff_as_released_pocket.py --source DIR \
    --output DIR
Hardware: two CPU cores; 37 evaluations of two rows a picture, and of up to seven in its branch of
IPKL. What the faults are: docs/segmentation.md. Noise and latent come from a seed all the same.
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
