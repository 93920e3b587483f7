"""Every shipped recipe builds, takes a step, and fits its full-size model; faults are one line."""

import json
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from pipeline.prompt_encoder import Conditioning
from segtrain import recipes
from segtrain.diffusion.aggregation import AGGREGATIONS
from segtrain.diffusion.backbone import make_trajectory
from segtrain.diffusion.extractor import DiffusionExtractor
from segtrain.diffusion.options import Features, read_group
from segtrain.diffusion.taps import MAPS
from segtrain.diffusion.trajectories import Schedule

sys.path.insert(0, str(Path(__file__).parent))
from toy_models import FULL, full_size, shrink_recipe, toy_base

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "configs" / "segtrain").glob("*.py"))
LEARNED = ("model", "optim_wrapper", "param_scheduler", "train_cfg")
stepped: set[str] = set()
DIFFUSION = [
    path
    for path in RECIPES
    if not path.stem.endswith("_pocket")
    and path.stem.startswith(("diff", "latent", "ptdiffseg", "streetforge", "vpd"))
]


def family_of(path: Path) -> str:
    """The family of base models that a recipe is written for."""
    for family in ("sd21", "sdxl"):
        if path.stem.endswith(family):
            return family
    return "sd21" if path.stem.startswith("diff") else "sd15"


@pytest.fixture(scope="session")
def toy_bases(tmp_path_factory: pytest.TempPathFactory, family_base) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("toys")
    return {family: toy_base(folder / family, family, family_base) for family in FULL}


def batch(*classes: int, size: tuple[int, int] = (32, 64)) -> tuple[torch.Tensor, list[Any]]:
    """Random images and labels of one class each."""
    torch.manual_seed(1)
    samples = []
    for value in classes:
        sample = SegDataSample(metainfo={"ori_shape": size, "img_shape": size})
        label = torch.full((1, *size), value)
        label[:, :8] = 255
        sample.gt_sem_seg = PixelData(data=label)
        samples.append(sample)
    return torch.rand(len(classes), 3, *size) * 2 - 1, samples


def shrink_foundation(recipe: Any) -> None:
    """Change the recipe of a foundation backbone in place to four narrow layers."""
    backbone, head = recipe.model.backbone, recipe.model.decode_head
    backbone.architecture.update(hidden_size=16, num_hidden_layers=4, num_attention_heads=2)
    backbone.out_layers = (0, 1, 2, 3)
    many = isinstance(head.in_channels, list | tuple)
    head.in_channels = [16] * 4 if many else 16
    if not many:
        head.channels = 16


def is_hrda_gta(path: Path) -> bool:
    """Whether a recipe has HRDA's two views at the sizes of GTA."""
    return "hrda" in path.stem and path.stem.endswith("_gta")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_builds_and_takes_a_step(path: Path, toy_bases: dict[str, Path]) -> None:
    recipe = recipes.load_recipe(path)
    plain = recipes.as_json(recipe)
    learned = json.dumps({name: plain[name] for name in LEARNED})
    if learned in stepped:  # only the data differs
        return
    stepped.add(learned)
    side = 32
    if path in DIFFUSION:
        shrink_recipe(recipe, toy_bases[family_of(path)])
        side = 64
    elif path.stem.startswith("dino"):
        shrink_foundation(recipe)
    elif is_hrda_gta(path):  # its context view is half as large
        side = 64
    model = recipes.build_model(recipe).train()
    losses = model(*batch(0, 13, size=(side, side)), mode="loss")
    total = sum(value for name, value in losses.items() if "loss" in name)
    total.backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert torch.isfinite(total) and missing == []
    wrapper = recipe.optim_wrapper
    optimizer = recipes.build_optimizer(recipe, model)
    rates = {group["lr"] for group in optimizer.param_groups}
    keys = (wrapper.get("paramwise_cfg") or {}).get("custom_keys", {})
    for options in keys.values():  # a key that names no parameter changes no rate
        assert wrapper.optimizer.lr * options.get("lr_mult", 1.0) in rates
    optimizer.step()
    factor = recipes.learning_rate_factor(recipe.param_scheduler)
    iterations = recipe.train_cfg.max_iters
    assert 0 < factor(0) <= factor(iterations // 10) <= 1 and factor(iterations) == 0
    if "diff37" in learned:  # the plain branch of the step above is all that a test runs
        return
    size = (80, 144) if is_hrda_gta(path) else (40, 72)
    inputs, samples = batch(0, size=size)
    with torch.no_grad():
        (result,) = model.eval().predict(inputs, samples)
    assert result.pred_sem_seg.shape == size
    assert 0 <= int(result.pred_sem_seg.data.min()) <= int(result.pred_sem_seg.data.max()) < 19


def test_a_diffusion_recipe_is_checked_for_each_family() -> None:
    assert {family_of(path) for path in DIFFUSION} == set(FULL)


@pytest.mark.parametrize("path", DIFFUSION, ids=lambda path: path.stem)
def test_maps_fit_neck_and_head_on_the_full_size_model(path: Path) -> None:
    recipe, family = recipes.load_recipe(path), family_of(path)
    config = FULL[family]
    settings = read_group(Features, recipe.model.backbone.features, "features")
    with torch.device("meta"):  # shapes without weights
        unet, vae = full_size(family)
        states = torch.zeros(1, 77, config["cross_attention_dim"])
        pooled = torch.zeros(1, 1280) if family == "sdxl" else None
    schedule = Schedule(diffusers.DDIMScheduler())
    extractor = DiffusionExtractor(unet, vae, schedule, taps=settings.taps)  # one level is enough
    levels = len(make_trajectory(settings.trajectory).levels)
    maps = {i for i, tap in enumerate(settings.taps) if tap.endswith(MAPS)}
    shapes = extractor.tap_shapes(Conditioning(states, pooled))
    shapes = [(19 if i in maps else c, s) for i, (c, s) in enumerate(shapes)]
    with torch.device("meta"):
        kind = AGGREGATIONS[settings.aggregation]
        aggregation = kind(shapes, levels, settings.out_channels, attention=maps)
    head = recipe.model.decode_head
    if settings.pyramid:
        assert len(settings.pyramid) == len(aggregation.strides) + 1
        assert list(settings.pyramid) == list(head.in_channels)
    elif recipe.model.get("neck") is None:
        assert aggregation.out_channels == [head.in_channels]
    else:
        assert aggregation.out_channels == list(recipe.model.neck.in_channels)
        assert aggregation.strides == list(head.feature_strides)
        assert list(head.in_channels) == [256] * recipe.model.neck.num_outs
