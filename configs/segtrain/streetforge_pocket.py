"""Our combination on the pocket model: one noised pass, scene prompts, randomization and IPKL.

accelerate launch segtrain/train.py configs/segtrain/streetforge_pocket.py --source DIR \
    --generated DIR --generated-share 0.5 --output DIR
Hardware: two CPU cores; one network evaluation a picture.
"""

_base_ = ["./diff1_pocket.py"]

model = dict(
    backbone=dict(
        trajectory=dict(timesteps=[50]),
        scenes=[  # the first is the source's
            "a city street scene, in a video game by day",
            "a city street scene, in sunny weather by day",
            "a city street scene, in overcast weather by day",
            "a city street scene, in rainy weather by day",
            "a city street scene, in foggy weather by day",
            "a city street scene, in snowy weather by day",
            "a city street scene, in clear weather at night",
            "a city street scene, in rainy weather at night",
            "a city street scene, in hazy weather at dawn",
            "a city street scene, in clear weather at dusk",
        ],
    ),
    randomization=dict(kind="kl", weight=1.0),
)
