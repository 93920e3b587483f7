"""DIFF as released, with its faults, on Stable Diffusion 2.1 and GTA; compare with diff_gta.py.

accelerate launch segtrain/train.py configs/segtrain/diff_as_released_gta.py --base SD21_FOLDER \
    --source GTA_DATASET --output DIR
Hardware: a GPU with 48 GB at batch 1; the published training took 61.6 hours on an RTX A6000 (Ji et
al., ICASSP 2025; its log). docs/segmentation.md lists the faults. Two things differ from it: the
unused features of stride 64 are left out, and the prompts of the classes are our choice. Not
trained by us.
"""

_base_ = ["./diff_gta.py"]

model = dict(
    backbone=dict(
        as_released=True,
        features=dict(
            trajectory=dict(eta=1.0, to_the_end=True),
            out_channels=[512, 1024, 2048],
        ),
    ),
    ipkl=dict(
        classes=[1, 3, 12, 14, 16],  # sidewalk, wall, rider, truck, train
        max_classes=5,
        stop_gradient=False,
    ),
)
