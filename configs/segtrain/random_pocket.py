"""The network of vpd_pocket.py with a U-Net of random weights: what is its pretraining worth?

accelerate launch segtrain/train.py configs/segtrain/random_pocket.py --source DIR --output DIR
Hardware: two CPU cores. The U-Net learns at the full rate; prompts and autoencoder are the base's.
"""

_base_ = ["./vpd_pocket.py"]

model = dict(backbone=dict(training=dict(random_weights=True)))
optim_wrapper = dict(paramwise_cfg=None)
