"""The network of vpd_pocket.py with a random U-Net, to measure the gain from pretraining.

accelerate launch segtrain/train.py configs/segtrain/random_pocket.py --source DIR --output DIR
Hardware: two CPU cores. The U-Net is trained with the full learning rate; prompts and autoencoder
are those of the base model.
"""

_base_ = ["./vpd_pocket.py"]

model = dict(backbone=dict(training=dict(random_weights=True)))
optim_wrapper = dict(paramwise_cfg=None)
