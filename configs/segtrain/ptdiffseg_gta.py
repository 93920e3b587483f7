"""PTDiffSeg with Stable Diffusion 1.5 on GTA: frozen, scene prompts, prompt randomization.

accelerate launch segtrain/train.py configs/segtrain/ptdiffseg_gta.py --base SD15_FOLDER \
    --source GTA_DATASET [--generated DIR --generated-share 0.5] --output DIR
Hardware: a GPU with 24 GB. segtrain/adapt.py then learns the scene prompt of a target. Details that
the paper (Gong et al., BMVC 2024) does not state are our choice; see docs/segmentation.md. This
file has been parsed and its taps checked against the full-size model; it has not been trained.
"""

_base_ = ["./vpd_gta.py", "./parts/scenes_gta.py"]

model = dict(
    backbone=dict(
        training=dict(part="frozen"),
        text=dict(adapter=False, scenes={{_base_.scenes}}),
    ),
    prompt_randomization=dict(kind="kl", weight=1.0),
)
optim_wrapper = dict(paramwise_cfg=None)
