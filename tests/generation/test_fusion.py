"""Fusion equals a plain slow loop; held regions end exactly on the reference latent."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from generation import fusion, tiles
from generation.engine import Pass, Sampler, build_scheduler
from pipeline import labels, models

CANVAS, TILE = (8, 16), (4, 8)  # latent pixels; the tiny VAE reduces 4x


def with_solver(networks, config, **changes):
    config = replace(config, **changes)
    return replace(networks, scheduler=build_scheduler(config, config.base)), config


@pytest.fixture(scope="module")
def problem(networks, tiny_config, make_label):
    """(control, text, noise, target, mask) of one canvas."""
    generator = torch.Generator().manual_seed(0)
    label = make_label(32, 64)
    control = labels.one_hot_control(torch.from_numpy(label)[None])
    text = networks.text.encode(["", "a city street scene"])
    noise = torch.randn((1, 4, *CANVAS), generator=generator)
    target = torch.randn((1, 4, *CANVAS), generator=generator)
    mask = tiles.resize_nearest(tiles.large_components(label, tiny_config.large_area), CANVAS)
    assert 0 < mask.sum() < mask.size
    return control, text, noise, target, mask


@torch.no_grad()
def fused(networks, config, problem, stride, batch=2, skip=False):
    control, text, noise, target, mask = problem
    boxes = tiles.tile_boxes(CANVAS, TILE, stride)
    if skip:
        boxes = tiles.needed_boxes(boxes, TILE, mask)
    canvas = Pass(
        networks, config, control=control, text=text, tile=TILE, boxes=boxes, batch=batch
    )
    held = torch.from_numpy(mask)[None, None]
    paste = fusion.Paste(held, target, config.fusion, torch.Generator().manual_seed(9))
    return canvas.run(noise, paste)


@torch.no_grad()
def slow_reference(networks, config, problem, stride):
    """DGInStyle's loop as it reads: each tile is stepped alone, steps are averaged, then pasted."""
    control, text, latents, target, mask = problem
    controlnet = models.load_component(config.controlnet, "controlnet", subfolder=None)
    held = torch.from_numpy(mask)[None, None].float()
    scheduler = copy.deepcopy(networks.scheduler)
    generator = torch.Generator().manual_seed(9)
    (h, w), px = TILE, networks.latent_px
    for timestep in scheduler.timesteps:
        total, count = torch.zeros_like(latents), torch.zeros_like(latents)
        for top, left in tiles.tile_boxes(CANVAS, TILE, stride):
            view = latents[:, :, top : top + h, left : left + w]
            rows, columns = slice(top * px, (top + h) * px), slice(left * px, (left + w) * px)
            outputs = []
            for states in text.states:
                down, mid = controlnet(
                    view, timestep, states[None], control[:, :, rows, columns],
                    conditioning_scale=config.control_scale, return_dict=False,
                )  # fmt: skip
                outputs.append(networks.unet(
                    view, timestep, states[None], down_block_additional_residuals=down,
                    mid_block_additional_residual=mid,
                ).sample)  # fmt: skip
            guided = outputs[0] + config.guidance_scale * (outputs[1] - outputs[0])
            stepped = scheduler.step(guided, timestep, view).prev_sample
            total[:, :, top : top + h, left : left + w] += stepped
            count[:, :, top : top + h, left : left + w] += 1
        level = 0 if timestep == scheduler.timesteps[-1] else int(timestep) - 1
        fresh = torch.randn(target.shape, generator=generator)
        noisy = scheduler.add_noise(target, fresh, torch.tensor([level]))
        latents = held * noisy + (1 - held) * total / count
    return latents


@pytest.mark.parametrize("stride", [(2, 4), (3, 5)])
def test_reference_preset_equals_the_slow_loop(networks, tiny_config, problem, stride):
    networks, config = with_solver(networks, tiny_config, fusion="reference")
    slow = slow_reference(networks, config, problem, stride)
    fast = fused(networks, config, problem, stride, skip=True)
    assert (fast - slow).norm() / slow.norm() <= 1e-5


@pytest.mark.parametrize("preset", ["aligned", "reference"])
def test_skipping_covered_tiles_changes_nothing(networks, tiny_config, problem, preset):
    networks, config = with_solver(networks, tiny_config, fusion=preset)
    config = replace(config, tile_batch=1)
    boxes = tiles.tile_boxes(CANVAS, TILE, (2, 4))
    assert len(tiles.needed_boxes(boxes, TILE, problem[-1])) <= len(boxes) - 3
    whole = fused(networks, config, problem, (2, 4), batch=1)
    skipped = fused(networks, config, problem, (2, 4), batch=1, skip=True)
    assert torch.equal(whole, skipped)


@pytest.mark.parametrize("solver", ["ddim", "dpm++2m", "unipc"])
def test_aligned_region_ends_on_the_reference_latent(networks, tiny_config, problem, solver):
    networks, config = with_solver(networks, tiny_config, solver=solver, steps=6)
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
    config = replace(tiny_config, solver=solver, steps=8)
    scheduler = build_scheduler(config, config.base)
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
        prediction = fusion.prediction_towards(target, latents, levels[step], kind)
        latents = scheduler.step(prediction, timestep, latents).prev_sample


def test_tile_batch_changes_the_result_by_rounding_alone(networks, tiny_config, problem):
    networks, config = with_solver(networks, tiny_config)
    one, four = (fused(networks, config, problem, (2, 4), batch=b) for b in (1, 4))
    assert torch.allclose(one, four, atol=1e-4)


def test_rescaled_guidance_has_the_contrast_of_the_prompt():
    generator = torch.Generator().manual_seed(0)
    negative, positive = torch.randn((2, 3, 4, 8, 8), generator=generator)
    full = fusion.guided(negative, positive, 5.0, 1.0)
    assert torch.allclose(full.std((1, 2, 3)), positive.std((1, 2, 3)), rtol=1e-4)
    assert torch.equal(
        fusion.guided(negative, positive, 5.0, 0.0), negative + 5 * (positive - negative)
    )


@pytest.mark.parametrize("preset", ["aligned", "reference", "none"])
def test_picture_depends_on_label_prompt_and_seed(networks, tiny_config, make_label, preset):
    config = replace(tiny_config, fusion=preset, steps=2)
    networks = replace(networks, scheduler=build_scheduler(config, config.base))
    sampler = Sampler(networks, config)
    label, prompt = make_label(32, 64), "a city street scene with road"
    first = sampler.draw(label, prompt, 5)
    sampler.draw(label, prompt, 6)
    again = sampler.draw(label, prompt, 5)
    assert first.image.shape == (32, 64, 3) and np.array_equal(first.image, again.image)
    assert (first.tiles_total == 0) == (preset == "none")
    assert first.evaluations == 2 * (1 + first.tiles)


def test_high_resolution_pass_is_reduced_to_the_crop(networks, tiny_config, make_label):
    config = replace(tiny_config, fusion_scale=2.0, base_scale=1.0, steps=2)
    networks = replace(networks, scheduler=build_scheduler(config, config.base))
    picture = Sampler(networks, config).draw(make_label(32, 64), "road", 0)
    assert picture.image.shape == (32, 64, 3)
    assert picture.tiles_total == 7 * 7
