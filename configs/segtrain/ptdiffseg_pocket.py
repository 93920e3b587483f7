"""PTDiffSeg on the pocket model: frozen, category and scene prompts, prompt randomization.

accelerate launch segtrain/train.py configs/segtrain/ptdiffseg_pocket.py --source DIR --output DIR
`segtrain/adapt.py --checkpoint DIR --target DIR --output DIR` then learns a target's scene prompt.
Hardware: two CPU cores. The paper (Gong et al., BMVC 2024) has no released code and does not state
head, taps, and form and weight of the consistency loss. These are our choice; see
docs/segmentation.md.
"""

_base_ = ["./vpd_pocket.py", "./parts/scenes_pocket.py"]

model = dict(
    backbone=dict(
        training=dict(part="frozen"),
        text=dict(adapter=False, scenes={{_base_.scenes}}),
    ),
    prompt_randomization=dict(kind="kl", weight=1.0),
)
optim_wrapper = dict(paramwise_cfg=None)
