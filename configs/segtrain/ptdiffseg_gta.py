"""PTDiffSeg with Stable Diffusion 1.5 on GTA: frozen, scene prompts, prompt randomization.

accelerate launch segtrain/train.py configs/segtrain/ptdiffseg_gta.py --base SD15_FOLDER \
    --source GTA_DATASET [--generated DIR --generated-share 0.5] --output DIR
Hardware: a GPU with 24 GB. Then, for a target, its scene prompt: segtrain/adapt.py. What the paper
(Gong et al., BMVC 2024) does not tell is our choice; see docs/segmentation.md. This file has been
parsed and its taps checked against the full-size model; it has not been trained.
"""

_base_ = ["./vpd_gta.py"]

model = dict(
    backbone=dict(
        training="frozen",
        adapter=False,
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
optim_wrapper = dict(paramwise_cfg=None)
