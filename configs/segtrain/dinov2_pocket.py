"""A frozen vision transformer of DINOv2's architecture at pocket size, with SegFormer's head.

python segtrain/pretrained.py --recipe configs/segtrain/dinov2_pocket.py \
    --weights DIR/backbone --output weights/backbone.safetensors
accelerate launch segtrain/train.py configs/segtrain/dinov2_pocket.py --source DIR \
    [--generated DIR --generated-share 0.5] --init weights/backbone.safetensors --output DIR
Hardware: two CPU cores. Weights: finetune/backbone.py, trained on unlabelled images. Not run by us
at full length.
"""

_base_ = ["./parts/data_pocket.py", "./parts/schedule_pocket.py", "./parts/segformer.py"]

model = dict(
    data_preprocessor={{_base_.data_preprocessor}},
    backbone=dict(
        _delete_=True,
        type="StreetforgeFoundationBackbone",
        architecture=dict(
            model_type="dinov2",
            hidden_size=192,
            num_hidden_layers=6,
            num_attention_heads=3,
            patch_size=8,
            image_size=128,
        ),
        out_layers=(1, 2, 3, 5),
        training="frozen",  # or rein, lora, full
    ),
    decode_head=dict(in_channels=[192, 192, 192, 192], channels=128),
)
