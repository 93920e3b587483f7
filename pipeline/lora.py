"""Low-rank adapters for GPUs that cannot hold the optimizer of the whole U-Net (peft, an extra)."""

from pathlib import Path
from typing import Any

ATTENTION_PROJECTIONS = ["to_q", "to_k", "to_v", "to_out.0"]


def add_adapter(unet: Any, rank: int) -> None:
    """Freeze the U-Net and add trainable pairs of `rank` to its attention projections.

    Hu et al., ICLR 2022: W + B A with B zero at first; the factor alpha / rank is 1.
    """
    from peft import LoraConfig

    unet.requires_grad_(False)
    unet.add_adapter(
        LoraConfig(
            r=rank,
            lora_alpha=rank,
            init_lora_weights="gaussian",
            target_modules=ATTENTION_PROJECTIONS,
        )
    )


def save_and_merge(unet: Any, folder: Path) -> None:
    """Write the adapter for `load_lora_weights` and turn `unet` into the merged stock network."""
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import get_peft_model_state_dict

    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)
    unet.fuse_lora()
    unet.unload_lora()
