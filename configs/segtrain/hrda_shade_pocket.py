"""hrda_pocket.py with SHADE's style hallucination after the second stage.

accelerate launch segtrain/train.py configs/segtrain/hrda_shade_pocket.py --source DIR \
    [--generated DIR --generated-share 0.5] --output DIR
Hardware: two CPU cores. Needs the extra `imagenet`. Not run by us at full length.
"""

_base_ = ["./hrda_pocket.py"]

model = dict(
    style_hallucination=dict(
        layer="network.stages.1", channels=24, num_styles=24, interval=200, pool=512
    ),
)
