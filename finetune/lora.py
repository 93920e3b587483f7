"""Low-rank adapters for GPUs that cannot hold the optimizer of the whole U-Net (peft, an extra)."""

from pathlib import Path
from typing import Any


def save_and_merge(unet: Any, folder: Path) -> None:
    """Write the adapter for `load_lora_weights` and turn `unet` into the merged stock network."""
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import get_peft_model_state_dict

    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)
    unet.fuse_lora()
    unet.unload_lora()
