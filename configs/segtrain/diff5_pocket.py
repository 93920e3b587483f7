"""DIFF on the pocket model with five steps of inversion, all kept.

accelerate launch segtrain/train.py configs/segtrain/diff5_pocket.py --source DIR --output DIR
Hardware: two CPU cores; five network evaluations per image.
"""

_base_ = ["./diff_pocket.py"]

model = dict(backbone=dict(features=dict(trajectory=dict(type="diff5"))))
