"""Our combination on the pocket model: one noised pass, scene prompts, randomization and IPKL.

accelerate launch segtrain/train.py configs/segtrain/streetforge_pocket.py --source DIR \
    --generated DIR --generated-share 0.5 --output DIR
Hardware: two CPU cores; one network evaluation a picture.
"""

_base_ = ["./diff1_pocket.py", "./parts/scenes_pocket.py"]

model = dict(
    backbone=dict(
        trajectory=dict(timesteps=[50]),
        scenes={{_base_.scenes}},
    ),
    randomization=dict(kind="kl", weight=1.0),
    knowledge=dict(probability=1.0),  # of the half of the steps without randomization
)
