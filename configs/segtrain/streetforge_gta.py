"""Our combination with Stable Diffusion 2.1 on GTA: one pass, scene prompts, randomization, IPKL.

accelerate launch segtrain/train.py configs/segtrain/streetforge_gta.py --base SD21_FOLDER \
    --source GTA_DATASET --generated DIR --generated-share 0.5 --output DIR
Hardware: a GPU with 24 GB. Chosen on Pocket City, where it was measured; this file has been parsed
and its taps checked against the full-size model, it has not been trained.
"""

_base_ = ["./diff1_gta.py"]

model = dict(
    backbone=dict(
        trajectory=dict(timesteps=[50]),
        scenes=[  # the first is the source's
            "a street scene in a video game",
            "a photo of a street scene in a European city, in sunny weather",
            "a photo of a street scene in an American city, on an overcast day",
            "a photo of a street scene in heavy rain, with a wet road",
            "a photo of a street scene in dense fog",
            "a photo of a street scene in winter, with snow on the road",
            "a photo of a street scene at night, lit by street lamps",
            "a photo of a street scene at night in the rain",
            "a photo of a street scene at dawn, with the sun low",
            "a photo of a street scene at dusk",
        ],
    ),
    randomization=dict(kind="kl", weight=1.0),
)
