"""Images generated together, on any canvas, from an image, with a second control."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel

from generation import tiles
from generation.sampler import canvas, structure_control
from generation.sampler import networks as loading
from generation.sampler import sampler as drawing
from generation.sampler.sampler import Sampler
from generation.samples import SampleSpec
from generation.setting_groups import SecondControl
from pipeline.errors import UserError


@pytest.fixture
def source():
    """An image with edges."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (4, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)


@pytest.mark.parametrize("preset", ["aligned", "reference", "none"])
def test_company_does_not_change_an_image(networks, tiny_config, make_label, preset):
    config = replace(tiny_config, fusion=preset, image_batch=3)
    sampler = Sampler(networks, config)
    requests = [SampleSpec(make_label(32, 64, i), f"road {i}", i) for i in range(3)]
    together = sampler.generate_all(requests)
    other_order = sampler.generate_all(requests[::-1])[::-1]
    alone = [sampler.generate_all([request])[0] for request in requests]
    for a, b, c in zip(together, other_order, alone, strict=True):
        assert np.array_equal(a.image, b.image) and np.array_equal(a.image, c.image)
    assert not np.array_equal(together[0].image, together[1].image)


@pytest.mark.parametrize("crop", [(33, 65), (47, 50), (40, 96)])
def test_odd_crops_are_padded_and_cropped(networks, tiny_config, make_label, crop):
    config = replace(tiny_config, crop_px=crop, base_pass_scale=0.5, canvas_scale=1.0)
    sampler = Sampler(networks, config)
    height, width = sampler.sizes.crop_px
    assert height >= crop[0] and width >= crop[1] and height % 2 == width % 2 == 0
    sample = sampler.generate(make_label(*crop), "road", 0)
    assert sample.image.shape == (*crop, 3)


def test_whole_frames_have_more_tiles(networks, tiny_config, make_label):
    config = replace(tiny_config, crop_px=(64, 128), tile_selection="all")
    sample = Sampler(networks, config).generate(make_label(64, 128), "road", 0)
    assert sample.image.shape == (64, 128, 3)
    assert sample.tiles == sample.tiles_total == 7 * 7


def test_unguided_interval_equals_no_guidance(networks, tiny_config, make_label):
    request = make_label(32, 64), "road", 0
    guided, never, interval = (
        Sampler(networks, replace(tiny_config, **changes)).generate(*request).image
        for changes in ({}, {"guidance_scale": 1.0}, {"guidance_interval": (0.0, 0.0)})
    )
    assert np.array_equal(never, interval) and not np.array_equal(guided, never)


def test_cached_embeddings_change_nothing(networks, tiny_config, make_label):
    request = make_label(32, 64), "road", 0
    images = [
        Sampler(networks, replace(tiny_config, condition_cache_tiles=n)).generate(*request).image
        for n in (0, 1, 256)
    ]
    assert np.array_equal(images[0], images[1]) and np.array_equal(images[0], images[2])


def test_adaptive_cover_holds_every_needed_pixel():
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = np.ones((16, 32), dtype=bool)
        for top, left in rng.integers(0, 14, (4, 2)):
            mask[top : top + 2, 2 * left : 2 * left + 3] = False
        grid = tiles.tile_boxes((16, 32), (8, 8), (2, 2))
        chosen = tiles.chosen_boxes(grid, (8, 8), mask, "greedy")
        assert set(chosen) <= set(tiles.chosen_boxes(grid, (8, 8), mask, "uncovered"))
        for top, left in chosen:
            mask[top : top + 8, left : left + 8] = True
        assert mask.all()


def test_memory_running_out_halves_the_tile_batch(networks, tiny_config, make_label, monkeypatch):
    request = make_label(32, 64), "road", 0
    config = replace(tiny_config, tile_batch=8)
    expected = Sampler(networks, config).generate(*request).image
    evaluate = canvas.TileBatcher._evaluate

    def small_device(self, group, number, size):
        if size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return evaluate(self, group, number, size)

    monkeypatch.setattr(canvas.TileBatcher, "_evaluate", small_device)
    sampler = Sampler(networks, config)
    image = sampler.generate(*request).image
    assert sampler.tile_pass.batch == 2
    assert np.abs(image.astype(int) - expected).max() <= 1

    def no_device(self, group, number, size):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(canvas.TileBatcher, "_evaluate", no_device)
    with pytest.raises(UserError, match="a single tile"):
        sampler.generate(*request)


def test_memory_running_out_outside_the_tiles_is_one_line(
    networks, tiny_config, make_label, monkeypatch
):
    def no_memory(vae, latents):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(drawing, "decode_latents", no_memory)
    with pytest.raises(UserError, match="--vae-tile-px 0: .* outside the tiles"):
        Sampler(networks, tiny_config).generate(make_label(32, 64), "road", 0)


@pytest.mark.parametrize("solver", ["ddim", "dpm++2m", "unipc"])
def test_start_from_an_image(networks, tiny_config, make_label, source, solver, monkeypatch):
    config = replace(tiny_config, scheduler=solver, steps=8, fusion="none", base_pass_scale=1.0)
    networks.set_scheduler(config)
    label = make_label(32, 64)
    start = Sampler(networks, replace(config, strength=0.5))._encode_image(source)
    distances, latents, decode = [], [], drawing.decode_latents
    monkeypatch.setattr(
        drawing, "decode_latents", lambda vae, z: latents.append(z) or decode(vae, z)
    )
    for strength in (0.25, 0.5, 0.99):
        sampler = Sampler(networks, replace(config, strength=strength))
        latents.clear()
        sample = sampler.generate_all([SampleSpec(label, "road", 0, source)])[0]
        assert sample.evaluations == max(1, round(8 * strength))
        distances.append(float((latents[0] - start).norm()))
    assert distances[0] < distances[1] < distances[2]


def test_second_control(networks, tiny_config, tiny_base, make_label, source, tmp_path):
    unet = UNet2DConditionModel.from_pretrained(tiny_base / "unet")
    torch.manual_seed(0)
    second = ControlNetModel.from_unet(
        unet, conditioning_channels=3, conditioning_embedding_out_channels=(8, 16, 16)
    )
    for layer in (*second.controlnet_down_blocks, second.controlnet_cond_embedding.conv_out):
        torch.nn.init.normal_(layer.weight, std=0.3)
    second.save_pretrained(tmp_path / "canny")
    images = []
    for scale in (0.0, 1.0):
        kind = SecondControl("canny", str(tmp_path / "canny"), scale)
        config = replace(tiny_config, second_control=kind)
        sampler = Sampler(loading.load_networks(config, torch.device("cpu")), config)
        request = SampleSpec(make_label(32, 64), "road", 0, source)
        images.append(sampler.generate_all([request])[0].image.astype(int))
    plain = Sampler(networks, tiny_config).generate(make_label(32, 64), "road", 0).image
    assert np.abs(images[0] - plain).max() <= 1 < np.abs(images[1] - plain).max()


def test_canny_finds_edges(source):
    found = structure_control.Detector(SecondControl("canny", "x"))(source)
    assert found.shape == (1, 3, 32, 64) and set(found.unique().tolist()) == {0.0, 1.0}


def test_what_is_not_installed_or_named_is_one_line(tiny_config, monkeypatch):
    import sys

    for name in ("xformers", "xformers.ops", "controlnet_aux"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match="--attention xformers: .* is not installed"):
        loading.find_attention("xformers")
    with pytest.raises(UserError, match="controlnet_aux cannot be imported"):
        structure_control.Detector(SecondControl("depth", "x"))
    with pytest.raises(UserError, match="needs --second-control.controlnet"):
        replace(tiny_config, second_control=SecondControl("canny")).check()
    with pytest.raises(UserError, match="in order"):
        replace(tiny_config, guidance_interval=(0.5, 0.2)).check()


def test_large_images_are_decoded_in_tiles(tiny_config, make_label):
    config = replace(tiny_config, vae_tile_px=16)
    tiled = Sampler(loading.load_networks(config, torch.device("cpu")), config)
    sample = tiled.generate(make_label(32, 64), "road", 0)
    assert sample.image.shape == (32, 64, 3)
    assert tiled.networks.vae.use_tiling
