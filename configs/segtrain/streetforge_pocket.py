"""Our combination on the pocket model: VPD with scene prompts and prompt randomization.

accelerate launch segtrain/train.py configs/segtrain/streetforge_pocket.py --source DIR \
    --generated DIR --generated-share 0.5 --output DIR
Hardware: two CPU cores; one network evaluation per image. Chosen by scores on the five targets, see
docs/results.md.
"""

_base_ = ["./vpd_pocket.py", "./parts/scenes_pocket.py"]

model = dict(
    backbone=dict(text=dict(scenes={{_base_.scenes}})),
    prompt_randomization=dict(kind="kl", weight=1.0),
)
