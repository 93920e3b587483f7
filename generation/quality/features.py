"""Named feature networks, for distances and diversity. Each turns an image into one vector.

`imagenet`: EfficientNet-Lite0, 320 channels after its last stage (the extra `imagenet`). `pocket`,
or another base of diffusers: the mean of the U-Net's deepest features of the clean latents under
an empty prompt. A folder of transformers (DINOv2, say): the pooled output. Values of one network
compare with each other alone.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from pipeline import models
from pipeline.errors import UserError
from pipeline.latents import encode_latents, images_to_tensor
from pipeline.transformers_folder import load_network

SIZE_PX = (128, 256)  # images are scaled to it for convolutional networks
SQUARE_PX = (224, 224)  # and to this for transformers
TIMESTEP = 50  # of 1000, given to the U-Net; the latents are clean, so that nothing is random
Extract = Callable[[Sequence[np.ndarray]], np.ndarray]
"""From HxWx3 uint8 images to features BxD float32."""


def load(name: str, device: Any) -> Extract:
    """Return what extracts the features of a network by its name."""
    if name == "imagenet":
        return _imagenet(device)
    if (Path(name) / "config.json").is_file():
        return _transformers(name, device)
    return _diffusion(name, device)


def resized(images: Sequence[np.ndarray], size_px: tuple[int, int], device: Any) -> torch.Tensor:
    """Return images as a tensor Bx3xHxW in [-1, 1] of `size_px` (height, width)."""
    scaled = [cv2.resize(i, size_px[::-1], interpolation=cv2.INTER_AREA) for i in images]
    return images_to_tensor(scaled).to(device)


def _imagenet(device: Any) -> Extract:
    from pipeline import efficientnet

    network = efficientnet.load_imagenet().to(device)

    @torch.no_grad()
    def extract(images: Sequence[np.ndarray]) -> np.ndarray:
        batch = efficientnet.normalise(resized(images, SIZE_PX, device))
        return network(batch)[-1].mean((2, 3)).cpu().numpy()

    return extract


def _transformers(folder: str, device: Any) -> Extract:
    from transformers import AutoModel

    model = load_network(AutoModel, folder, name=f"--features {folder}", what="vision model")
    model = model.to(device).eval()
    mean, std = (
        torch.tensor(v, device=device).view(1, 3, 1, 1)
        for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )

    @torch.no_grad()
    def extract(images: Sequence[np.ndarray]) -> np.ndarray:
        batch = (resized(images, SQUARE_PX, device) + 1) / 2
        output = model(pixel_values=(batch - mean) / std)
        pooled = getattr(output, "pooler_output", None)
        pooled = output.last_hidden_state[:, 0] if pooled is None else pooled
        return pooled.flatten(1).float().cpu().numpy()

    try:
        extract([np.zeros((*SQUARE_PX, 3), np.uint8)])
    except Exception as error:  # a text model, or one that needs a text beside the image
        raise UserError(
            f"--features {folder}: gives no features of an image ({type(error).__name__}); give "
            "the folder of a vision model, such as DINOv2"
        ) from None
    return extract


def _diffusion(name: str, device: Any) -> Extract:
    from pipeline.prompt_encoder import PromptEncoder

    base = models.find_base(name)
    vae, unet = (models.load_network(kind, base).to(device).eval() for kind in ("vae", "unet"))
    text = PromptEncoder(base, device).encode([""])
    deepest: list[torch.Tensor] = []
    unet.mid_block.register_forward_hook(lambda _m, _i, output: deepest.append(output))

    @torch.no_grad()
    def extract(images: Sequence[np.ndarray]) -> np.ndarray:
        latents = encode_latents(vae, resized(images, SIZE_PX, device))
        prompt = text.map(lambda part: part.repeat_interleave(len(latents), 0))
        deepest.clear()
        unet(latents, TIMESTEP, **prompt.arguments(SIZE_PX))
        return deepest[0].mean((2, 3)).float().cpu().numpy()

    return extract
