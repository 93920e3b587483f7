"""Base diffusion models in Stable Diffusion's folder layout.

A base is named by `pocket` (the built-in model), a local diffusers folder, or a hub id pinned to
a commit: `owner/name@<40 hex digits>`. Only stock classes and safetensors are loaded.
"""

import hashlib
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError

if TYPE_CHECKING:
    import torch

POCKET = Path(__file__).resolve().parent / "pocket" / "weights"
POCKET_BASE = POCKET / "base"
POCKET_CONTROLNET = POCKET / "controlnet"
COMPONENTS = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "controlnet": "ControlNetModel",
    "text_encoder": "CLIPTextModel",
    "tokenizer": "CLIPTokenizer",
}


def find_base(name: str) -> str:
    """Return the folder or pinned hub id of a base model, checked without loading weights."""
    if name == "pocket":
        name = str(POCKET_BASE)
    if Path(name).is_dir():
        if not (Path(name) / "model_index.json").is_file():
            raise UserError(f"{name}: has no model_index.json; give a diffusers pipeline folder")
        return name
    if re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", name):
        return name
    raise UserError(
        f"base model {name!r}: neither 'pocket', nor a folder, nor a hub id pinned as "
        "owner/name@<40-digit commit>"
    )


def find_folder(name: str, config_file: str = "config.json") -> Path:
    """Return the folder of a single model (a ControlNet or U-Net), checked to hold a config."""
    folder = POCKET_CONTROLNET if name == "pocket" else Path(name)
    if not (folder / config_file).is_file():
        raise UserError(f"{folder}: has no {config_file}; give a folder written by save_pretrained")
    return folder


def load_component(base: str, part: str, **options: Any) -> Any:
    """Load one component of a base model by its stock class, float32 on the CPU."""
    import diffusers
    import torch
    import transformers

    name, _, revision = base.partition("@")
    where: dict[str, Any] = {"subfolder": part, **options}
    if revision:
        where["revision"] = revision
    if part == "tokenizer":
        return transformers.CLIPTokenizer.from_pretrained(name, **where)
    if part == "text_encoder":
        where["dtype"] = torch.float32
        return transformers.CLIPTextModel.from_pretrained(name, use_safetensors=True, **where)
    model_class = getattr(diffusers, COMPONENTS[part])
    return model_class.from_pretrained(
        name, use_safetensors=True, torch_dtype=torch.float32, **where
    )


def load_scheduler(base: str, class_name: str = "DDIMScheduler", **changes: Any) -> Any:
    """Build a scheduler from the base's own config, so its prediction type is never assumed."""
    import diffusers

    name, _, revision = base.partition("@")
    where: dict[str, Any] = {"subfolder": "scheduler"} | (
        {"revision": revision} if revision else {}
    )
    return getattr(diffusers, class_name).from_pretrained(name, **where, **changes)


def revision(folder: str | Path) -> str:
    """Return the pinned commit of a hub id, or a digest of the weights of a local folder."""
    name = str(folder)
    if "@" in name and not Path(name).exists():
        return name.partition("@")[2]
    return _weights_digest(Path(name).resolve())


@cache
def _weights_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    paths = [p for s in ("*.safetensors", "*config.json") for p in folder.rglob(s)]
    for path in sorted(paths):
        digest.update(str(path.relative_to(folder)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def encode_prompts(tokenizer: Any, text_encoder: Any, prompts: list[str]) -> "torch.Tensor":
    """Return the text states of `prompts`, BxLxD, padded to the tokenizer's full length."""
    tokens = tokenizer(
        prompts,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    return text_encoder(tokens.input_ids.to(text_encoder.device))[0]


def images_to_tensor(images: "list[Any]") -> "torch.Tensor":
    """Stack HxWx3 uint8 pictures into a Bx3xHxW float32 tensor in [-1, 1]."""
    import numpy as np
    import torch

    stacked = torch.from_numpy(np.stack(images)).movedim(-1, 1)
    return stacked.float() / 127.5 - 1


def tensor_to_images(tensor: "torch.Tensor") -> Any:
    """Turn a Bx3xHxW tensor in [-1, 1] into a BxHxWx3 uint8 array, clamped and rounded."""
    scaled = ((tensor.float() + 1) * 127.5).round().clamp(0, 255)
    return scaled.byte().movedim(1, -1).cpu().numpy()


def encode_latents(vae: Any, images: "torch.Tensor") -> "torch.Tensor":
    """Encode pictures Bx3xHxW in [-1, 1] to scaled latents BxCxhxw, the posterior's mean."""
    latents = vae.encode(images).latent_dist.mean
    return (latents - (vae.config.shift_factor or 0)) * vae.config.scaling_factor


def sample_latents(
    vae: Any, images: "torch.Tensor", generator: "torch.Generator"
) -> "torch.Tensor":
    """Encode pictures Bx3xHxW in [-1, 1] to scaled latents drawn from the posterior."""
    latents = vae.encode(images).latent_dist.sample(generator)
    return (latents - (vae.config.shift_factor or 0)) * vae.config.scaling_factor


def decode_latents(vae: Any, latents: "torch.Tensor") -> "torch.Tensor":
    """Decode scaled latents BxCxhxw to pictures Bx3xHxW, about [-1, 1]."""
    return vae.decode(latents / vae.config.scaling_factor + (vae.config.shift_factor or 0)).sample


def latent_factor(vae: Any) -> int:
    """Return how many picture pixels one latent pixel spans per axis."""
    return 2 ** (len(vae.config.block_out_channels) - 1)
