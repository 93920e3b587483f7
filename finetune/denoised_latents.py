"""Latents with the faults of a diffusion model, to train a decoder on.

A decoder is trained on the latents of its encoder, but in use it decodes those that a diffusion
model made. Here latents of images are noised to a random level and denoised from there by some
steps of the model (SDEdit, Meng et al., ICLR 2022). So they keep the content of the image and have
the model's faults. A decoder trained to restore the image from them decodes generated latents
better.
"""

import torch
from diffusers import DDIMScheduler

from pipeline import models
from pipeline.prompt_encoder import PromptEncoder
from pipeline.size_grid import vae_scale_factor

STEPS = 10  # of a whole schedule


class PartialDenoiser:
    """Noises latents up to a share of the schedule and denoises them, for the empty prompt.

    `strength` (0..1) is the largest share. The number of denoising steps is drawn for each batch,
    evenly from 0, which leaves the latents as they are, to `strength` of all steps.
    """

    def __init__(self, base: str, device: torch.device, strength: float) -> None:
        self.unet = models.load_network("unet", base, None).requires_grad_(False).to(device)
        self.vae = models.load_component(base, "vae")  # for its settings alone
        self.text = PromptEncoder(base, device)
        self.scheduler = DDIMScheduler.from_config(
            models.load_scheduler(base).config, clip_sample=False
        )
        self.scheduler.set_timesteps(STEPS)
        self.most_steps = round(strength * STEPS)

    @torch.no_grad()
    def apply(self, latents: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return denoised latents BxCxhxw for latents as the autoencoder gives them, unscaled."""
        device = generator.device
        count = torch.randint(self.most_steps + 1, (), generator=generator, device=device).item()
        if not count:
            return latents
        timesteps = self.scheduler.timesteps[-int(count) :].to(latents.device)
        scale, shift = self.vae.config.scaling_factor, self.vae.config.shift_factor or 0
        noise = torch.randn(latents.shape, generator=generator, device=device)
        current = self.scheduler.add_noise((latents - shift) * scale, noise, timesteps[:1])
        factor = vae_scale_factor(self.vae)
        size_px = (latents.shape[-2] * factor, latents.shape[-1] * factor)
        text = self.text.encode([""] * len(latents)).arguments(size_px)
        for timestep in timesteps:
            prediction = self.unet(current, timestep, **text).sample.float()
            current = self.scheduler.step(prediction, timestep, current).prev_sample
        return current / scale + shift
