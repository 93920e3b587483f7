"""SegFormer MiT-B5 on GTA with generated images, at 512x512 crops for 40,000 iterations.

accelerate launch segtrain/train.py configs/segtrain/segformer_gta.py --source GTA_DATASET \
    --generated GENERATED --generated-share 0.5 --init MIT_B5.safetensors --output DIR
Hardware: one 24 GB GPU. The schedule follows DGInStyle's (AdamW 6e-5, head 10 times that, linear
warm-up of 1,500 iterations, linear decay, batch 2). The paper starts from ImageNet weights;
segtrain/pretrained.py writes them for `--init`. Tests build this network; it has not
been trained.
"""

_base_ = ["./parts/data_gta.py", "./parts/schedule_gta.py"]

model = dict(
    backbone=dict(
        type="MixVisionTransformer",
        in_channels=3,
        embed_dims=64,
        num_stages=4,
        num_layers=[3, 6, 40, 3],
        num_heads=[1, 2, 5, 8],
        patch_sizes=[7, 3, 3, 3],
        sr_ratios=[8, 4, 2, 1],
        out_indices=(0, 1, 2, 3),
        mlp_ratio=4,
        qkv_bias=True,
        drop_path_rate=0.1,
    ),
    decode_head=dict(
        type="SegformerHead",
        in_channels=[64, 128, 320, 512],
        in_index=[0, 1, 2, 3],
        channels=256,
        dropout_ratio=0.1,
        num_classes=19,
        norm_cfg=dict(type="BN", requires_grad=True),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", loss_weight=1.0, avg_non_ignore=True),
    ),
)
