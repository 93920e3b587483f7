"""Pictures drawn at each checkpoint, and a score of how much the label map controls them.

The crops are drawn once, by a seed of their own, from the training files. Nothing here touches
the randomness of the training, and only the main process comes here, so nothing may wait for the
others: a run gives the same weights with and without previews.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from finetune.diffusion import FrozenBase, collate, encode_moments, predict
from finetune.losses import diffusion_loss, diffusion_target
from pipeline import files, labels
from pipeline.latents import decode_latents, tensor_to_images
from pipeline.seeding import numpy_generator, seed_of

STEPS, GUIDANCE = 10, 5.0
SCORED = 8  # crops that the score is taken over
LEVELS = 4  # timesteps per crop that it is taken at


class Previews:
    """Draws the same crops at every checkpoint, with the same noise.

    `draw(rng)` returns (picture, label or None, caption); `shown` of the crops go into the sheet.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        frozen: FrozenBase,
        draw: Any,
        *,
        seed: int,
        shown: int,
        folder: Path,
    ) -> None:
        self.accelerator, self.frozen, self.shown, self.folder = accelerator, frozen, shown, folder
        count = max(shown, SCORED)
        items = [draw(numpy_generator(seed, "preview", i)) for i in range(count)]
        self.images, self.maps, self.captions = collate(items)
        self.noise_seed = seed_of(seed, "preview noise")
        self.moments = encode_moments(frozen.vae, list(self.images.numpy()))

    def _noise(self, count: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.noise_seed)
        shape = (count, *self.moments.shape[2:])
        return torch.randn(shape, generator=generator).to(self.frozen.device)

    def pictures(self) -> np.ndarray:
        """Return the crops shown, BxHxWx3 uint8."""
        return self.images[: self.shown].numpy()

    def colours(self) -> np.ndarray:
        """Return the label maps of the crops shown as colours, BxHxWx3 uint8."""
        return np.stack([labels.colorize(m) for m in self.maps[: self.shown].numpy()])

    @torch.no_grad()
    def draw(self, unet: Any, controlnet: Any = None) -> np.ndarray:
        """Draw the crops shown from noise, BxHxWx3 uint8, with guidance and few steps."""
        frozen, latents = self.frozen, self._noise(self.shown)
        scheduler = copy.deepcopy(frozen.scheduler)
        scheduler.register_to_config(clip_sample=False)
        scheduler.set_timesteps(STEPS)
        prompts = [""] * self.shown + list(self.captions[: self.shown])
        text = frozen.text_arguments(prompts, latents)
        control = None
        if controlnet is not None:
            maps = self.maps[: self.shown].to(frozen.device)
            control = labels.one_hot_control(maps).repeat(2, 1, 1, 1)
        for timestep in scheduler.timesteps:
            sample = scheduler.scale_model_input(latents, timestep).repeat(2, 1, 1, 1)
            output = predict(unet, sample, timestep, text, controlnet, control).float()
            negative, positive = output.chunk(2)
            guided = negative + GUIDANCE * (positive - negative)
            latents = scheduler.step(guided, timestep, latents).prev_sample
        with frozen.vae_precision():
            return tensor_to_images(decode_latents(frozen.vae, latents))

    @torch.no_grad()
    def controllability(self, unet: Any, controlnet: Any) -> float:
        """Return (L_wrong - L_right) / L_wrong, 0 where the label map has no influence.

        L_right is the denoising loss with each crop's own label map, L_wrong with the next crop's,
        at the same noise and timesteps. It measures that the network listens to the map, without
        any segmentation network; how good the pictures are it does not tell.
        """
        frozen, scheduler = self.frozen, self.frozen.scheduler
        latents = self.moments[:, 0].float().to(frozen.device)
        noise = self._noise(len(latents))
        text = frozen.text_arguments(self.captions, latents)
        right = labels.one_hot_control(self.maps.to(frozen.device))
        losses = []
        for control in (right.roll(1, 0), right):
            total = 0.0
            for level in range(LEVELS):
                place = int((level + 0.5) / LEVELS * scheduler.config.num_train_timesteps)
                times = torch.full((len(latents),), place, device=frozen.device)
                noisy = scheduler.add_noise(latents, noise, times)
                target = diffusion_target(scheduler, latents, noise, times)
                prediction = predict(unet, noisy, times, text, controlnet, control)
                total += float(diffusion_loss(prediction, target))
            losses.append(total)
        wrong, own = losses
        return (wrong - own) / max(wrong, 1e-12)

    def write(self, step: int, columns: Sequence[np.ndarray]) -> None:
        """Write one sheet, a row per crop, as PNG and for trackers that take pictures."""
        sheet = np.concatenate(list(np.concatenate(list(columns), axis=2)), axis=0)
        path = self.folder / "previews" / f"step-{step:08d}.png"
        files.write_bytes(path, files.encode_png(sheet))
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                tracker.log_images({"previews": sheet[None]}, step, dataformats="NHWC")
