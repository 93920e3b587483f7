"""Between images, tensors in [-1, 1] and the scaled latents of an autoencoder."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def images_to_tensor(images: "list[Any] | torch.Tensor") -> "torch.Tensor":
    """Stack HxWx3 uint8 images (or take BxHxWx3) into a Bx3xHxW float32 tensor in [-1, 1]."""
    import numpy as np
    import torch

    stacked = images if isinstance(images, torch.Tensor) else torch.from_numpy(np.stack(images))
    return stacked.movedim(-1, 1).float() / 127.5 - 1


def tensor_to_images(tensor: "torch.Tensor") -> Any:
    """Turn a Bx3xHxW tensor in [-1, 1] into a BxHxWx3 uint8 array, clamped and rounded."""
    scaled = ((tensor.float() + 1) * 127.5).round().clamp(0, 255)
    return scaled.byte().movedim(1, -1).cpu().numpy()


def encode_latents(vae: Any, images: "torch.Tensor") -> "torch.Tensor":
    """Encode images Bx3xHxW in [-1, 1] to scaled latents BxCxhxw, the posterior's mean."""
    latents = vae.encode(images).latent_dist.mean
    return (latents - (vae.config.shift_factor or 0)) * vae.config.scaling_factor


def sample_latents(
    vae: Any, images: "torch.Tensor", generator: "torch.Generator"
) -> "torch.Tensor":
    """Encode images Bx3xHxW in [-1, 1] to scaled latents sampled from the posterior."""
    latents = vae.encode(images).latent_dist.sample(generator)
    return (latents - (vae.config.shift_factor or 0)) * vae.config.scaling_factor


def decode_latents(vae: Any, latents: "torch.Tensor") -> "torch.Tensor":
    """Decode scaled latents BxCxhxw to images Bx3xHxW, about [-1, 1]."""
    return vae.decode(latents / vae.config.scaling_factor + (vae.config.shift_factor or 0)).sample
