"""Write a base model of Stable Diffusion's architecture with random weights.

It serves to measure speed and memory at full size where the real weights are not available. It
loads like the real model; only its vocabulary is that of the pocket model.

    python benchmarks/random_base.py --output runs/random_sd15           # 2 GB
    python benchmarks/random_base.py --family sd21 --output runs/random_sd21
    python benchmarks/random_base.py --size narrow --output runs/random_narrow  # quarter widths
    python benchmarks/random_base.py --size toy --output runs/random_toy        # for tests
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import diffusers
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.errors import guard
from pipeline.labels import CONTROL_CHANNELS
from pipeline.models import POCKET_BASE
from pipeline.setting_checks import require_seed

FAMILIES = ("sd15", "sd21")
TEXT = {  # width, layers, heads, activation; the last layer of OpenCLIP-H is not used
    "sd15": (768, 12, 12, "quick_gelu"),
    "sd21": (1024, 23, 16, "gelu"),
}
UNET: dict[str, dict[str, Any]] = {
    "sd15": {},
    "sd21": {"attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
}
SIZES: dict[str, dict[str, dict[str, Any]]] = {  # what differs from the real networks
    "real": {"text": {}, "unet": {}, "vae": {"block_out_channels": (128, 256, 512, 512)}},
    "narrow": {
        "text": {"width": 192, "layers": 12, "heads": 3},
        "unet": {"block_out_channels": (80, 160, 320, 320), "norm_num_groups": 16},
        "vae": {"block_out_channels": (32, 64, 128, 128)},
    },
    "toy": {
        "text": {"width": 32, "layers": 1, "heads": 2},
        "unet": {"block_out_channels": (32, 32, 64, 64), "norm_num_groups": 8},
        "vae": {"block_out_channels": (8, 8, 16, 16), "layers_per_block": 1, "norm_num_groups": 8},
    },
}


def text_encoder(family: str, tokenizer: Any, size: str) -> Any:
    """Return a random text encoder."""
    width, layers, heads, activation = TEXT[family]
    sizes = {"width": width, "layers": layers, "heads": heads} | SIZES[size]["text"]
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=sizes["width"],
            intermediate_size=4 * sizes["width"],
            num_hidden_layers=sizes["layers"],
            num_attention_heads=sizes["heads"],
            hidden_act=activation,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def unet(family: str, width: int, size: str) -> Any:
    """Return a random U-Net for text states of `width` channels."""
    changes = UNET[family] | SIZES[size]["unet"]
    if size != "real" and family == "sd21":  # narrow heads for narrow layers
        changes["attention_head_dim"] = (4, 4, 8, 8)
    return diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=width, **changes)


def autoencoder(size: str) -> Any:
    """Return a random autoencoder that shrinks by 8."""
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        sample_size=512,
        **({"layers_per_block": 2, "norm_num_groups": 32} | SIZES[size]["vae"]),
    )


def build(family: str = "sd15", size: str = "real") -> diffusers.StableDiffusionPipeline:
    """Build the pipeline with random float32 weights."""
    tokenizer = CLIPTokenizer.from_pretrained(
        POCKET_BASE, subfolder="tokenizer", model_max_length=77
    )
    text = text_encoder(family, tokenizer, size)
    return diffusers.StableDiffusionPipeline(
        unet=unet(family, text.config.hidden_size, size),
        vae=autoencoder(size),
        text_encoder=text,
        tokenizer=tokenizer,
        scheduler=diffusers.PNDMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            skip_prk_steps=True,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def build_controlnet(base_unet: Any) -> Any:
    """Return a ControlNet of 20 channels; its last convolutions are not zero, as after training."""
    network = diffusers.ControlNetModel.from_unet(base_unet, conditioning_channels=CONTROL_CHANNELS)
    for layer in (
        *network.controlnet_down_blocks,
        network.controlnet_mid_block,
        network.controlnet_cond_embedding.conv_out,
    ):
        torch.nn.init.normal_(layer.weight, std=0.02)
    return network


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", required=True, type=Path, help="diffusers folder to write")
    parser.add_argument("--controlnet", type=Path, help="also write a ControlNet of 20 channels")
    parser.add_argument("--family", choices=FAMILIES, default="sd15", help="architecture")
    parser.add_argument("--size", choices=SIZES, default="real", help="widths of the networks")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights")
    arguments = parser.parse_args()
    require_seed(arguments.seed)
    torch.manual_seed(arguments.seed)
    base = build(arguments.family, arguments.size)
    if arguments.controlnet:
        build_controlnet(base.unet).to(torch.float16).save_pretrained(arguments.controlnet)
    base.to(torch.float16).save_pretrained(arguments.output)


if __name__ == "__main__":
    guard(main)
