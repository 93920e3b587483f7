"""The sampler draws what the stock ControlNet pipelines of diffusers draw, family by family."""

from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel

from generation.sampler.networks import load_networks
from generation.sampler.sampler import Sampler
from generation.samples import SampleSpec
from pipeline.latents import decode_latents, encode_latents

HALF_A_GREY_LEVEL = 0.5 + 1e-2  # ours is rounded to whole ones; the rest is float32
SOLVERS = {
    "ddim": (diffusers.DDIMScheduler, {"clip_sample": False}),
    "dpm++2m": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
}


@pytest.fixture(scope="module", params=["sd15", "sd21", "sdxl"])
def family(request, family_base, tmp_path_factory):
    """(base folder, ControlNet folder, stock pipeline) of random networks."""
    base, folder = family_base(request.param), tmp_path_factory.mktemp("control")
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    torch.manual_seed(5)
    net = ControlNetModel.from_unet(
        unet, conditioning_channels=20, conditioning_embedding_out_channels=(4, 8, 8)
    )
    for layer in (
        *net.controlnet_down_blocks,
        net.controlnet_mid_block,
        net.controlnet_cond_embedding.conv_out,
    ):
        torch.nn.init.normal_(layer.weight, std=0.1)  # they start at zero
    net.save_pretrained(folder)
    if request.param == "sdxl":
        stock = diffusers.StableDiffusionXLControlNetPipeline.from_pretrained(
            base, controlnet=net, add_watermarker=False
        )
    else:
        stock = diffusers.StableDiffusionControlNetPipeline.from_pretrained(base, controlnet=net)
    stock.set_progress_bar_config(disable=True)
    return base, folder, stock


@pytest.mark.parametrize("solver", SOLVERS)
def test_equals_the_stock_pipeline(family, tiny_config, make_label, solver):
    base, folder, stock = family
    config = replace(
        tiny_config,
        base=str(base),
        controlnet=str(folder),
        scheduler=solver,
        steps=5,
        fusion="none",
        base_pass_scale=1.0,
        guidance_scale=6.0,
        guidance_interval=(0.0, 1.0),
        guess_mode_from=1.0,
        controlnet_scale=0.8,
        negative_prompt="fog at night",
    )
    label, prompt = make_label(32, 64), "a city street scene with road and car"
    sampler = Sampler(load_networks(config, torch.device("cpu")), config)
    ours = sampler.generate_all([SampleSpec(label, prompt, 11)])[0].image

    ids = torch.from_numpy(np.where(label == 255, 19, label)).long()
    control = torch.stack([ids == channel for channel in range(20)]).float()[None]
    kind, changes = SOLVERS[solver]
    stock.scheduler = kind.from_config(stock.scheduler.config, **changes)
    theirs = stock(
        prompt,
        image=control,
        num_inference_steps=5,
        guidance_scale=6.0,
        negative_prompt="fog at night",
        controlnet_conditioning_scale=0.8,
        generator=torch.Generator().manual_seed(11),
        output_type="np",
    ).images[0]
    assert theirs.std() > 0.01
    assert np.abs(ours - theirs * 255.0).max() <= HALF_A_GREY_LEVEL


def _blended(parts: list[list[np.ndarray]], extent: int, limit: int) -> np.ndarray:
    """Join CxHxW tiles: over `extent` pixels one fades into the next, `limit` of each are kept."""
    ramp = np.arange(extent) / extent
    rows = []
    for i, row in enumerate(parts):
        joined = []
        for j, part in enumerate(row):
            if i > 0:
                above = parts[i - 1][j][:, -extent:]
                part[:, :extent] = above * (1 - ramp)[:, None] + part[:, :extent] * ramp[:, None]
            if j > 0:
                left = row[j - 1][:, :, -extent:]
                part[:, :, :extent] = left * (1 - ramp) + part[:, :, :extent] * ramp
            joined.append(part[:, :limit, :limit])
        rows.append(np.concatenate(joined, axis=2))
    return np.concatenate(rows, axis=1)


def test_tiles_of_the_autoencoder_meet_where_they_should(tiny_config):
    """Tiles of 32 px, 8 latents, overlap by a quarter: 24 px, 6 latents, are new in each."""
    config = replace(tiny_config, vae_tile_px=32)
    vae = load_networks(config, torch.device("cpu")).vae
    whole = load_networks(tiny_config, torch.device("cpu")).vae
    latents = torch.randn((1, 4, 14, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pixels = decode_latents(vae, latents)
        parts = [
            [
                decode_latents(whole, latents[..., i : i + 8, j : j + 8])[0].double().numpy()
                for j in range(0, 20, 6)
            ]
            for i in range(0, 14, 6)
        ]
        assert pixels.shape == (1, 3, 56, 80)
        expected = _blended(parts, 8, 24)
        assert np.allclose(pixels[0].numpy(), expected, atol=1e-5)
        plain = decode_latents(whole, latents)[0].numpy()
        assert not np.allclose(plain, expected, atol=1e-3)

        image = torch.rand((1, 3, 56, 80), generator=torch.Generator().manual_seed(1)) * 2 - 1
        encoded = encode_latents(vae, image)
        parts = [
            [
                encode_latents(whole, image[..., i : i + 32, j : j + 32])[0].double().numpy()
                for j in range(0, 80, 24)
            ]
            for i in range(0, 56, 24)
        ]
        assert np.allclose(encoded[0].numpy(), _blended(parts, 2, 6), atol=1e-5)
