"""ControlNet training as the example script of diffusers does it, for comparison.

Every update decodes its images, encodes them with the autoencoder, encodes the captions with the
text encoder, and runs U-Net and ControlNet by their stock forward passes; then the gradient norm is
clipped and AdamW makes an update. The only change: the condition has 20 channels, as ours.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import AutoencoderKL, ControlNetModel, DDPMScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPTextModel, CLIPTokenizer


class Pairs(Dataset):
    """Image, label and caption files as the script's dataset gives them."""

    def __init__(
        self,
        pairs: Sequence[tuple[Path, Path]],
        captions: Sequence[str],
        tokenizer: Any,
        crop_px: tuple[int, int],
    ) -> None:
        self.pairs, self.captions, self.crop_px = pairs, captions, crop_px
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        image = np.array(Image.open(self.pairs[index][0]).convert("RGB"))
        label = np.array(Image.open(self.pairs[index][1]))
        window = tuple(slice(0, side) for side in self.crop_px)
        pixels = torch.from_numpy(image[window].copy()).permute(2, 0, 1).float() / 127.5 - 1
        ids = torch.from_numpy(np.where(label[window] == 255, 19, label[window])).long()
        control = F.one_hot(ids, 20).permute(2, 0, 1).float()
        tokens = self.tokenizer(
            self.captions[index],
            max_length=self.tokenizer.model_max_length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        )
        return {"pixels": pixels, "control": control, "tokens": tokens.input_ids[0]}


class Script:
    """The script's networks, optimizer and loop."""

    def __init__(
        self,
        base: str,
        pairs: Sequence[tuple[Path, Path]],
        *,
        captions: Sequence[str],
        crop_px: tuple[int, int],
        batch_size: int,
        accelerator: Accelerator,
        condition_channels: tuple[int, ...],
    ) -> None:
        self.accelerator, device = accelerator, accelerator.device
        tokenizer = CLIPTokenizer.from_pretrained(base, subfolder="tokenizer")
        self.scheduler = DDPMScheduler.from_pretrained(base, subfolder="scheduler")
        self.text = CLIPTextModel.from_pretrained(base, subfolder="text_encoder")
        self.vae = AutoencoderKL.from_pretrained(base, subfolder="vae")
        self.unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet").float()
        controlnet = ControlNetModel.from_unet(
            self.unet,
            conditioning_channels=20,
            conditioning_embedding_out_channels=condition_channels,
        )
        # As the script does; group norms of a CPU refuse half weights for float32 residuals
        half = accelerator.mixed_precision == "bf16" and device.type == "cuda"
        self.weight_type = torch.bfloat16 if half else torch.float32
        for network in (self.text, self.vae, self.unet):
            network.requires_grad_(False).to(device, self.weight_type)
        controlnet.train()
        optimizer = torch.optim.AdamW(controlnet.parameters(), lr=1e-5)
        dataset: Dataset = Pairs(pairs, captions, tokenizer, crop_px)
        loader = DataLoader(dataset, shuffle=bool(pairs), batch_size=batch_size, drop_last=True)
        rates = get_scheduler("constant", optimizer=optimizer)
        self.controlnet, self.optimizer, self.loader, self.rates = accelerator.prepare(
            controlnet, optimizer, loader, rates
        )

    def batches(self) -> Iterator[dict[str, torch.Tensor]]:
        """Return the batches of epoch after epoch."""
        while True:
            yield from self.loader

    def update(self, batch: dict[str, torch.Tensor]) -> None:
        """Make one update."""
        with self.accelerator.accumulate(self.controlnet), self.accelerator.autocast():
            latents = self.vae.encode(batch["pixels"].to(self.weight_type)).latent_dist.sample()
            latents = latents * self.vae.config.scaling_factor
            noise = torch.randn_like(latents)
            count = self.scheduler.config.num_train_timesteps
            timesteps = torch.randint(0, count, (len(latents),), device=latents.device)
            noisy = self.scheduler.add_noise(latents, noise, timesteps)
            states = self.text(batch["tokens"])[0]
            down, middle = self.controlnet(
                noisy, timesteps, states, controlnet_cond=batch["control"], return_dict=False
            )
            prediction = self.unet(
                noisy, timesteps, states, down_block_additional_residuals=down,
                mid_block_additional_residual=middle, return_dict=False,
            )[0]  # fmt: skip
            target = noise
            if self.scheduler.config.prediction_type == "v_prediction":
                target = self.scheduler.get_velocity(latents, noise, timesteps)
            loss = F.mse_loss(prediction.float(), target.float())
            self.accelerator.backward(loss)
            self.accelerator.clip_grad_norm_(self.controlnet.parameters(), 1.0)
            self.optimizer.step()
            self.rates.step()
            self.optimizer.zero_grad()
        float(loss.detach())  # the script shows the loss of each update
