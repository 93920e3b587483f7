"""Tiny networks and settings shared by the generation tests."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from generation.setting_groups import RareClasses
from generation.settings import Config

CROP = (32, 64)


def blocky_label(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A label of a large road, a large sky and small things between them, with some void."""
    rng = np.random.default_rng(seed)
    label = np.full((height, width), 10, dtype=np.uint8)
    label[height // 2 :] = 0
    for class_id in (2, 5, 7, 11, 13, 255):
        top = int(rng.integers(height // 4, height // 2 - 5))
        left = int(rng.integers(0, width - 8))
        label[top : top + 6, left : left + 8] = class_id
    return label


@pytest.fixture(scope="session")
def make_label() -> Callable[..., np.ndarray]:
    """A function (height, width, seed) that draws a label of large and small regions."""
    return blocky_label


@pytest.fixture(scope="session")
def label_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain folder of five palette PNGs of train ids, some larger than the crop."""
    from PIL import Image

    from pipeline.labels import PALETTE

    folder = tmp_path_factory.mktemp("label_maps")
    for index in range(5):
        label = blocky_label(CROP[0] + 8 * index, CROP[1] + 8 * index, index)
        image = Image.fromarray(label, mode="P")
        image.putpalette(PALETTE.ravel().tolist())
        image.save(folder / f"{index:03d}.png")
    return folder


@pytest.fixture(scope="session")
def tiny_config(tiny_base: Path, tiny_controlnet: Path, label_folder: Path) -> Config:
    """Settings for the tiny networks: 32x64 crops, 16x32 tiles, 3 steps."""
    return Config(
        n=4, base=str(tiny_base), controlnet=str(tiny_controlnet), label_maps=str(label_folder),
        crop_px=CROP, tile_px=(16, 32), stride_px=(8, 16), steps=3, scheduler="ddim", tile_batch=2,
        min_region_share=0.05, base_pass_classes=(), rare_classes=RareClasses(min_pixels=4),
        base_pass_scale=0.5, canvas_scale=1.0,
        guidance_interval=(0.0, 0.6), guess_mode_from=0.5,
    )  # fmt: skip


@pytest.fixture(scope="session")
def flags(tiny_config: Config) -> list[str]:
    """The same settings as command line flags of generation/run.py."""
    return [
        *("--base", tiny_config.base), *("--controlnet", tiny_config.controlnet),
        *("--label-maps", tiny_config.label_maps), *("--crop-px", "32", "64"),
        *("--tile-px", "16", "32"), *("--stride-px", "8", "16"), *("--steps", "3"),
        *("--tile-batch", "2"), *("--min-region-share", "0.05"), "--base-pass-classes",
        *("--rare-classes.min-pixels", "4"), *("--scheduler", "ddim"),
        *("--base-pass-scale", "0.5"), *("--canvas-scale", "1"),
        *("--guidance-interval", "0", "0.6"),
        *("--guess-mode-from", "0.5"),
    ]  # fmt: skip


@pytest.fixture(scope="session")
def loaded(tiny_config: Config):
    import torch

    from generation.sampler.networks import load_networks

    return load_networks(tiny_config, torch.device("cpu"))


@pytest.fixture
def networks(loaded, tiny_config: Config):
    """The tiny networks, loaded once, with the solver of `tiny_config`."""
    loaded.set_scheduler(tiny_config)
    return loaded
