"""Write a base model of Stable Diffusion 1.5's architecture with random weights.

It serves to measure speed and memory at full size where the real weights are not available. It
loads like the real model; only its vocabulary is that of the pocket model.

    python benchmarks/random_base.py --output runs/random_sd15           # 2 GB
"""

import argparse
import sys
from pathlib import Path

import diffusers
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.errors import guard
from pipeline.models import POCKET_BASE
from pipeline.setting_checks import require_seed


def build() -> diffusers.StableDiffusionPipeline:
    """Build the pipeline with random float32 weights."""
    tokenizer = CLIPTokenizer.from_pretrained(
        POCKET_BASE, subfolder="tokenizer", model_max_length=77
    )
    text_config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return diffusers.StableDiffusionPipeline(
        unet=diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
        vae=diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            sample_size=512,
        ),
        text_encoder=CLIPTextModel(text_config),
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", required=True, type=Path, help="diffusers folder to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights")
    arguments = parser.parse_args()
    require_seed(arguments.seed)
    torch.manual_seed(arguments.seed)
    build().to(torch.float16).save_pretrained(arguments.output)


if __name__ == "__main__":
    guard(main)
