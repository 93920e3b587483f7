"""Fusion equals a plain slow loop; held regions end exactly on the reference latent."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.plain_fusion import Plain
from generation import tiles
from generation.sampler import fusion
from generation.sampler.canvas import Canvas, TileBatcher
from generation.sampler.guidance import Guidance
from generation.sampler.networks import build_scheduler, load_networks
from generation.sampler.sampler import Sampler
from generation.samples import SampleSpec
from pipeline import labels, resizing

CANVAS, TILE = (8, 16), (4, 8)  # latent pixels; the tiny VAE reduces 4x


def with_solver(networks, config, **changes):
    config = replace(config, **changes)
    networks.set_scheduler(config)
    return networks, config


@pytest.fixture
def problem(networks, tiny_config, make_label):
    """(control, text, noise, target, mask) of one canvas."""
    generator = torch.Generator().manual_seed(0)
    label = make_label(32, 64)
    control = labels.one_hot_control(torch.from_numpy(label)[None])
    text = networks.text.encode(["", "a city street scene"])
    noise = torch.randn((1, 4, *CANVAS), generator=generator)
    target = torch.randn((1, 4, *CANVAS), generator=generator)
    mask = resizing.resize_nearest(
        tiles.large_components(label, tiny_config.min_region_share), CANVAS
    )
    assert 0 < mask.sum() < mask.size
    return control, text, noise, target, mask


@torch.no_grad()
def fused(networks, config, problem, stride, batch=2, cover="all"):
    control, text, noise, target, mask = problem
    boxes = tiles.chosen_boxes(tiles.tile_boxes(CANVAS, TILE, stride), TILE, mask, cover)
    held = torch.from_numpy(mask)[None, None]
    generator = torch.Generator().manual_seed(9)
    constraint = fusion.RegionConstraint(held, target, config.fusion, generator)
    networks.denoiser.prime(text, config.tile_px)
    canvas = Canvas(
        networks.scheduler, noise=noise, conditions=[control], text_rows=(0, 1), boxes=boxes,
        tile_weights=tiles.tile_weights(TILE, config.tile_weight), constraint=constraint,
    )  # fmt: skip
    guidance = Guidance(config.guidance_scale, config.guidance_interval, config.steps)
    TileBatcher(networks.denoiser, guidance, batch, fixed_shape=False).denoise([canvas])
    return canvas.latents


@pytest.fixture(scope="module")
def reference_run(family_base, tiny_config, tmp_path_factory):
    """(settings of the reference preset, stock pipeline) on a tiny Stable Diffusion 1.5."""
    from diffusers import ControlNetModel, DDIMScheduler, StableDiffusionControlNetPipeline

    base, folder = family_base("sd15"), tmp_path_factory.mktemp("control")
    stock = StableDiffusionControlNetPipeline.from_pretrained(base, controlnet=None)
    torch.manual_seed(3)
    net = ControlNetModel.from_unet(
        stock.unet, conditioning_channels=20, conditioning_embedding_out_channels=(4, 8, 8)
    )
    for layer in (*net.controlnet_down_blocks, net.controlnet_mid_block,
                  net.controlnet_cond_embedding.conv_out):  # fmt: skip
        torch.nn.init.normal_(layer.weight, std=0.1)
    net.save_pretrained(folder)
    stock.controlnet = net
    stock.scheduler = DDIMScheduler.from_config(stock.scheduler.config, clip_sample=False)
    stock.scheduler.set_timesteps(20)
    assert int(stock.scheduler.timesteps[-1]) == 1
    config = replace(
        tiny_config, base=str(base), controlnet=str(folder), fusion="reference",
        base_pass_scale=0.5, steps=20, guidance_scale=7.5, guidance_interval=(0.0, 1.0),
        guess_mode_from=1.0,
        controlnet_scale=1.0, tile_batch=4, image_batch=2, negative_prompt="",
        min_region_share=0.05,
    )  # fmt: skip
    return config, stock


@pytest.mark.parametrize("stride", [(2, 4), (4, 4)])
def test_reference_preset_equals_the_published_loop(reference_run, make_label, stride):
    """Scheduler, text, networks and the loop are not the product's; the enlarged base pass is 2x.

    The label is of the base pass's size, the canvas twice as large, as published.
    """
    config, stock = reference_run
    config = replace(
        config, crop_px=(16, 32), base_pass_scale=1.0, canvas_scale=2.0,
        stride_px=(stride[0] * 4, stride[1] * 4),
    )  # fmt: skip
    sampler = Sampler(load_networks(config, torch.device("cpu")), config)
    plain = Plain(
        unet=stock.unet, controlnet=stock.controlnet, vae=stock.vae, scheduler=stock.scheduler,
        base=TILE, canvas=CANVAS, tile=TILE, stride=stride, min_region_share=0.05,
        guidance_scale=7.5,
        controlnet_scale=1.0,
    )  # fmt: skip
    requests = [SampleSpec(make_label(32, 64, i)[8:24, 16:48], f"road {i}", i) for i in range(2)]
    latents, decode = [], sampler._decode
    sampler._decode = lambda done, *rest: latents.append(done.latents) or decode(done, *rest)
    bases, enlarge = [], sampler._reference_latent
    sampler._reference_latent = lambda base, rng: bases.append(base) or enlarge(base, rng)
    sampler.generate_all(requests)
    for request, base, ours in zip(requests, bases, latents, strict=True):
        held = plain.large_regions(request.label)
        assert 0 < int(held.sum()) < held.numel()
        positive, negative = stock.encode_prompt(request.prompt, "cpu", 1, True, "")
        states = torch.cat([negative, positive])
        generator = torch.Generator().manual_seed(request.seed)
        published = plain.base_pass(request.label, states, generator)
        assert (base - published).norm() / published.norm() <= 1e-5
        # From the same base: between the passes the image is rounded to 8 bits, where a
        # difference in the last bit can become one of 1/255
        published = plain.high_resolution_pass(request.label, states, base, generator)
        assert (ours - published).norm() / published.norm() <= 1e-5


def test_reference_mask_takes_the_first_pixel_of_each_block():
    """512 px are reduced to 128 latents by pixel 4i, as torch's nearest rule does."""
    label = np.full((512, 512), 5, np.uint8)
    label[::4] = label[:, ::4] = 0  # a lattice of road; its gaps hold the pixels 4i + 2
    for preset, share in (("reference", 1), ("aligned", 0)):
        rules = tiles.RegionRules(0.07, [0], "all", preset)
        assert rules.held_mask(label, (128, 128)).mean() == share
    odd = np.random.default_rng(0).random((52, 77)) < 0.5
    picked = F.interpolate(torch.from_numpy(odd).float()[None, None], size=(13, 31))
    assert np.array_equal(resizing.pick_nearest(odd, (13, 31)), picked[0, 0].bool().numpy())


@pytest.mark.parametrize("preset", ["aligned", "reference"])
def test_skipping_covered_tiles_changes_nothing(networks, tiny_config, problem, preset):
    networks, config = with_solver(networks, tiny_config, fusion=preset)
    config = replace(config, tile_batch=1)
    boxes = tiles.tile_boxes(CANVAS, TILE, (2, 4))
    assert len(tiles.chosen_boxes(boxes, TILE, problem[-1], "uncovered")) <= len(boxes) - 3
    whole = fused(networks, config, problem, (2, 4), batch=1)
    skipped = fused(networks, config, problem, (2, 4), batch=1, cover="uncovered")
    assert torch.equal(whole, skipped)


@pytest.mark.parametrize("solver", ["ddim", "dpm++2m", "unipc"])
def test_aligned_region_ends_on_the_reference_latent(networks, tiny_config, problem, solver):
    networks, config = with_solver(networks, tiny_config, scheduler=solver, steps=6)
    *_, target, mask = problem
    result = fused(networks, config, problem, (2, 4))
    held = torch.from_numpy(mask)[None, None].expand_as(result)
    assert torch.isfinite(result).all()
    assert torch.equal(result[held], target[held])
    assert not torch.allclose(result[~held], target[~held])


@pytest.mark.parametrize("solver", ["ddim", "dpm++2m", "unipc"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_held_region_follows_the_straight_path(tiny_config, solver, kind):
    """Without the final write, every step lies on alpha target + sigma noise, to rounding.

    Eight steps, since the DDIM of diffusers leaves its own grid if steps do not divide 1000.
    """
    config = replace(tiny_config, scheduler=solver, steps=8)
    scheduler = build_scheduler(config.base, config.scheduler, config.steps)
    # Zero terminal SNR cannot be expressed by noise predictions, so they get the plain schedule.
    changes = {"prediction_type": kind, "rescale_betas_zero_snr": kind != "epsilon"}
    scheduler = type(scheduler).from_config(scheduler.config, **changes)
    scheduler.set_timesteps(config.steps)
    levels = fusion.noise_levels(scheduler)
    generator = torch.Generator().manual_seed(0)
    noise, target = torch.randn((2, 1, 4, 4, 4), generator=generator)
    alpha, sigma = levels[0]
    latents = alpha * target + sigma * noise
    for step, timestep in enumerate(scheduler.timesteps):
        alpha, sigma = levels[step]
        assert torch.allclose(latents, alpha * target + sigma * noise, atol=2e-3)
        prediction = fusion.prediction_for_x0(target, latents, levels[step], kind)
        latents = scheduler.step(prediction, timestep, latents).prev_sample


def test_tile_batch_changes_the_result_by_rounding_alone(networks, tiny_config, problem):
    networks, config = with_solver(networks, tiny_config)
    one, four = (fused(networks, config, problem, (2, 4), batch=b) for b in (1, 4))
    assert torch.allclose(one, four, atol=1e-4)


def test_guidance_is_classifier_free_guidance():
    generator = torch.Generator().manual_seed(0)
    negative, positive = torch.randn((2, 3, 4, 8, 8), generator=generator)
    guidance = Guidance(5.0, (0.0, 1.0), 10)
    expected = negative + 5 * (positive - negative)
    assert torch.equal(guidance.combine(negative, positive), expected)


@pytest.mark.parametrize("preset", ["aligned", "reference", "none"])
def test_image_depends_on_label_prompt_and_seed(networks, tiny_config, make_label, preset):
    config = replace(tiny_config, fusion=preset, steps=2)
    networks.set_scheduler(config)
    sampler = Sampler(networks, config)
    label, prompt = make_label(32, 64), "a city street scene with road"
    first = sampler.generate(label, prompt, 5)
    sampler.generate(label, prompt, 6)
    again = sampler.generate(label, prompt, 5)
    assert first.image.shape == (32, 64, 3) and np.array_equal(first.image, again.image)
    assert (first.tiles_total == 0) == (preset == "none")
    assert first.evaluations == 2 * (1 + first.tiles)


def test_high_resolution_pass_is_reduced_to_the_crop(networks, tiny_config, make_label):
    config = replace(tiny_config, canvas_scale=2.0, base_pass_scale=1.0, steps=2)
    networks.set_scheduler(config)
    sample = Sampler(networks, config).generate(make_label(32, 64), "road", 0)
    assert sample.image.shape == (32, 64, 3)
    assert sample.tiles_total == 7 * 7
