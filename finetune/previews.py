"""Previews at each checkpoint: generated images, and a score of how much the label map controls.

The crops are sampled once, by a seed of their own, from the training files. Nothing here touches
the randomness of the training. Only the main process comes here, so nothing may wait for the other
processes. A run gives the same weights with and without previews.
"""

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from diffusers import ControlNetModel, UNet2DConditionModel

from finetune.crops import TrainingItem
from finetune.diffusion import FrozenBase, collate, encode_moments, predict
from finetune.losses import diffusion_loss, diffusion_target
from finetune.start import Run
from pipeline import files, images, labels
from pipeline.latents import decode_latents, tensor_to_images
from pipeline.seeding import numpy_generator, seed_of

STEPS, GUIDANCE = 10, 5.0
NUM_SCORED = 8  # crops that the score is averaged over
NUM_LEVELS = 4  # timesteps per crop that it is averaged over


class Previews:
    """Generates images for the same crops at every checkpoint, from the same noise.

    `num_shown` of the crops that `sample` gives go into the sheet.
    """

    def __init__(
        self,
        run: Run,
        frozen: FrozenBase,
        sample: Callable[[np.random.Generator], TrainingItem],
        num_shown: int,
    ) -> None:
        self.run, self.frozen, self.num_shown = run, frozen, num_shown
        count = max(num_shown, NUM_SCORED)
        items = [sample(numpy_generator(run.seed, "preview", i)) for i in range(count)]
        self.images, self.maps, self.captions = collate(items)
        self.noise_seed = seed_of(run.seed, "preview noise")
        self.moments = encode_moments(frozen.vae, list(self.images.numpy()))

    def _noise(self, count: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.noise_seed)
        shape = (count, *self.moments.shape[2:])
        return torch.randn(shape, generator=generator).to(self.frozen.device)

    def crops(self) -> np.ndarray:
        """Return the crops shown, BxHxWx3 uint8."""
        return self.images[: self.num_shown].numpy()

    def colorized_labels(self) -> np.ndarray:
        """Return the label maps of the crops shown in the colours of their classes, BxHxWx3 uint8.

        Only for crops with labels.
        """
        assert self.maps is not None
        return np.stack([labels.colorize(m) for m in self.maps[: self.num_shown].numpy()])

    @torch.no_grad()
    def generate(
        self, unet: UNet2DConditionModel, controlnet: ControlNetModel | None = None
    ) -> np.ndarray:
        """Generate an image per crop shown, BxHxWx3 uint8, with guidance and few steps."""
        frozen, latents = self.frozen, self._noise(self.num_shown)
        scheduler = copy.deepcopy(frozen.scheduler)
        scheduler.register_to_config(clip_sample=False)
        scheduler.set_timesteps(STEPS)
        prompts = [""] * self.num_shown + list(self.captions[: self.num_shown])
        text = frozen.text_arguments(prompts, latents)
        control = None
        if controlnet is not None:
            assert self.maps is not None
            maps = self.maps[: self.num_shown].to(frozen.device)
            control = labels.one_hot_control(maps).repeat(2, 1, 1, 1)
        for timestep in scheduler.timesteps:
            sample = scheduler.scale_model_input(latents, timestep).repeat(2, 1, 1, 1)
            output = predict(unet, sample, timestep, text, controlnet, control).float()
            negative, positive = output.chunk(2)
            guided = negative + GUIDANCE * (positive - negative)
            latents = scheduler.step(guided, timestep, latents).prev_sample
        # One by one: an image of 1024 px takes 3 GB
        parts = [tensor_to_images(decode_latents(frozen.vae, z)) for z in latents.split(1)]
        return np.concatenate(parts)

    @torch.no_grad()
    def controllability(self, unet: UNet2DConditionModel, controlnet: ControlNetModel) -> float:
        """Return (L_wrong - L_right) / L_wrong, 0 where the label map has no influence.

        L_right is the denoising loss with each crop's own label map, L_wrong with the next crop's,
        at the same noise and timesteps. The score measures the influence of the label map without
        any segmentation network. It does not measure the quality of the images.
        """
        assert self.maps is not None
        frozen, scheduler = self.frozen, self.frozen.scheduler
        latents = self.moments[:, 0].float().to(frozen.device)
        noise = self._noise(len(latents))
        text = frozen.text_arguments(self.captions, latents)
        right = labels.one_hot_control(self.maps.to(frozen.device))
        losses = []
        for control in (right.roll(1, 0), right):
            total = 0.0
            for level in range(NUM_LEVELS):
                share = (level + 0.5) / NUM_LEVELS
                timestep = int(share * scheduler.config.num_train_timesteps)
                timesteps = torch.full((len(latents),), timestep, device=frozen.device)
                noisy = scheduler.add_noise(latents, noise, timesteps)
                target = diffusion_target(scheduler, latents, noise, timesteps)
                prediction = predict(unet, noisy, timesteps, text, controlnet, control)
                total += float(diffusion_loss(prediction, target))
            losses.append(total)
        wrong, own = losses
        return (wrong - own) / max(wrong, 1e-12)

    def write(self, step: int, columns: Sequence[np.ndarray]) -> None:
        """Write one sheet, a row per crop, as PNG and for trackers that take images."""
        sheet = np.concatenate(list(np.concatenate(list(columns), axis=2)), axis=0)
        path = self.run.folder / "previews" / f"step-{step:08d}.png"
        files.write_bytes(path, images.encode_png(sheet))
        for tracker in self.run.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                tracker.log_images({"previews": sheet[None]}, step, dataformats="NHWC")


def make_previews(
    run: Run,
    frozen: FrozenBase,
    sample: Callable[[np.random.Generator], TrainingItem],
    num_shown: int,
) -> Previews | None:
    """Return the previews of a run, None where there are none to generate or on other processes."""
    if num_shown and run.accelerator.is_main_process:
        return Previews(run, frozen, sample, num_shown)
    return None
