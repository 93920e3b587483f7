"""Stable Diffusion's shapes: with few channels as a folder, at full size without weights."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers

from segtrain.diffusion.trajectories import DIFF_37_SAVED

SD15: dict[str, Any] = {"cross_attention_dim": 768}
SD21: dict[str, Any] = {
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
SDXL: dict[str, Any] = {
    "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280], "use_linear_projection": True,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10], "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
FULL = {"sd15": SD15, "sd21": SD21, "sdxl": SDXL}
WIDTHS = {"sd15": 16, "sd21": 20, "sdxl": 40}  # of the tiny text encoders
SHRINK = 40  # full-size channels to those of a toy
VAE: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
}


def full_size(family: str) -> tuple[Any, Any]:
    """U-Net and autoencoder of a family at full size; build them on the meta device."""
    unet = diffusers.UNet2DConditionModel(**FULL[family])
    return unet, diffusers.AutoencoderKL(**VAE, block_out_channels=[128, 256, 512, 512])


def toy_base(folder: Path, family: str, family_base: Callable[[str], Path]) -> Path:
    """Write a base with the blocks of a family and a fortieth of its channels."""
    shutil.copytree(family_base(family), folder)
    config = dict(FULL[family])
    channels = [c // SHRINK for c in config.get("block_out_channels", [320, 640, 1280, 1280])]
    config |= {
        "block_out_channels": channels,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "cross_attention_dim": WIDTHS[family],
    }
    if family == "sdxl":
        config |= {
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 24 + 48,
            "transformer_layers_per_block": [1, 1, 2],
        }
    for part in ("unet", "vae"):
        shutil.rmtree(folder / part)
    diffusers.UNet2DConditionModel(**config).save_pretrained(folder / "unet")
    vae = diffusers.AutoencoderKL(**VAE, block_out_channels=[4, 4, 8, 8], norm_num_groups=4)
    vae.save_pretrained(folder / "vae")
    return folder


def shrink_recipe(recipe: Any, base: Path) -> None:
    """Change a full-size recipe in place so that it reads a toy base; the rest stays."""
    model, backbone = recipe.model, recipe.model.backbone
    backbone.base, features = str(base), backbone.features
    if features.get("trajectory", {}).get("type") == "diff37":  # the levels between are skipped
        features.trajectory.targets = [*sorted(DIFF_37_SAVED), 105]
    if features.get("pyramid"):  # widths of its own, not the U-Net's
        features.out_channels, features.pyramid = 16, [8, 8, 16, 16]
        model.decode_head.update(in_channels=[8, 8, 16, 16], embed_dims=8, channels=8)
        return
    if model.get("neck") is None:  # the latent channels are those of the full size
        return
    model.neck.in_channels = [
        c // SHRINK + (19 if c % SHRINK == 19 else 0) for c in model.neck.in_channels
    ]
