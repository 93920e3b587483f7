"""DIFF on the pocket model with one step: noise of t = 100, one pass.

accelerate launch segtrain/train.py configs/segtrain/diff1_pocket.py --source DIR --output DIR
Hardware: two CPU cores; one network evaluation per image.
"""

_base_ = ["./diff_pocket.py"]

model = dict(
    backbone=dict(features=dict(trajectory=dict(_delete_=True, type="noised", timesteps=[100])))
)
