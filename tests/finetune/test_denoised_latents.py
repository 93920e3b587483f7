"""Latents for the training of a decoder: they equal those of diffusers' image-to-image pipeline."""

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline

from finetune.denoised_latents import STEPS, PartialDenoiser

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def latents(tiny_base) -> torch.Tensor:
    pipe = StableDiffusionImg2ImgPipeline.from_pretrained(tiny_base, safety_checker=None)
    channels = pipe.unet.config.in_channels
    return torch.randn(1, channels, 8, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_the_stock_pipeline(seed, latents, tiny_base, monkeypatch):
    """Same number of steps, noise and empty prompt; the pipeline takes scaled latents as images."""
    pipe = StableDiffusionImg2ImgPipeline.from_pretrained(tiny_base, safety_checker=None)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    scale = pipe.vae.config.scaling_factor
    denoiser = PartialDenoiser(str(tiny_base), CPU, 0.6)
    ours = denoiser.apply(latents, torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.randint(7, (), generator=generator))
    if not count:
        assert torch.equal(ours, latents)
        return

    def prepare(image, *_, generator, **__):
        noise = torch.randn(latents.shape, generator=generator)
        first = pipe.scheduler.timesteps[-count:][:1]
        return pipe.scheduler.add_noise(latents * scale, noise, first)

    monkeypatch.setattr(
        pipe, "prepare_latents", lambda *arguments: prepare(*arguments, generator=generator)
    )
    expected = pipe(
        "",
        image=torch.zeros(1, 3, 64, 128),
        strength=count / STEPS + 1e-6,
        num_inference_steps=STEPS,
        guidance_scale=1.0,
        generator=generator,
        output_type="latent",
    ).images
    assert torch.allclose(ours * scale, expected, atol=1e-4)


def test_without_strength_latents_stay(latents, tiny_base):
    denoiser = PartialDenoiser(str(tiny_base), CPU, 0.0)
    assert torch.equal(denoiser.apply(latents, torch.Generator().manual_seed(0)), latents)
