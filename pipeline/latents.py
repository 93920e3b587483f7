"""Between images, tensors in [-1, 1] and the scaled latents of an autoencoder."""

from contextlib import AbstractContextManager, nullcontext
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
    return _scaled(vae, _posterior(vae, images).mean)


def sample_latents(
    vae: Any, images: "torch.Tensor", generator: "torch.Generator"
) -> "torch.Tensor":
    """Encode images Bx3xHxW in [-1, 1] to scaled latents sampled from the posterior."""
    return _scaled(vae, _posterior(vae, images).sample(generator))


def decode_latents(vae: Any, latents: "torch.Tensor") -> "torch.Tensor":
    """Decode scaled latents BxCxhxw to images Bx3xHxW, about [-1, 1]."""
    with _autocast_of(vae, latents):
        latents = full_precision(latents) / vae.config.scaling_factor
        return vae.decode(latents + (vae.config.shift_factor or 0)).sample


def full_precision(tensor: "torch.Tensor") -> "torch.Tensor":
    """Return a tensor of at least float32, whatever autocast made of it."""
    import torch

    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _posterior(vae: Any, images: "torch.Tensor") -> Any:
    with _autocast_of(vae, images):
        return vae.encode(full_precision(images)).latent_dist


def _scaled(vae: Any, latents: "torch.Tensor") -> "torch.Tensor":
    """Return latents as the U-Net knows them, in full precision: solvers compute with them."""
    return (full_precision(latents) - (vae.config.shift_factor or 0)) * vae.config.scaling_factor


def without_autocast(kind: str) -> AbstractContextManager[object]:
    """Return the context in which a type of device computes in the precision of its tensors."""
    import torch

    if not torch.amp.is_autocast_available(kind):  # as for tensors without values (meta)
        return nullcontext()
    return torch.autocast(kind, enabled=False)


def _autocast_of(vae: Any, given: "torch.Tensor") -> AbstractContextManager[object]:
    """Return the autocast context of an autoencoder: float32 in place of float16 if it must.

    SDXL's overflows in float16, and its config says so (`force_upcast`).
    """
    import torch

    kind = given.device.type
    available = torch.amp.is_autocast_available(kind)
    is_half = available and torch.get_autocast_dtype(kind) is torch.float16
    return without_autocast(kind) if is_half and vae.config.force_upcast else nullcontext()
