"""Small labelled folders and recipes for the tests of segtrain."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.dataset_writer import DatasetWriter

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "configs" / "segtrain"
TINY_SEGFORMER = """
_base_ = [{base!r}]
max_iters = 6
crop_size = (32, 64)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="StreetforgeResize"),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.85),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
sets = dict(
    source=dict(scale_factor=(1.0, 1.5)),
    generated=dict(scale_factor=(1.0, 1.5)),
    target=dict(scale_factor=(1.0, 1.5)),
)
train_dataloader = dict(batch_size=2, dataset=dict(data_root={data!r}, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(data_root={data!r}))
test_dataloader = val_dataloader
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=2),
    dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=False, begin=2, end=max_iters),
]
model = dict(
    data_preprocessor=dict(size=crop_size),
    {model}
)
"""
WHOLE_FRAMES = """
test_pipeline = [
    dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"), dict(type="PackSegInputs"),
]
"""
SEGFORMER_MODEL = """
    backbone=dict(embed_dims=8, num_layers=[1, 1, 1, 1], num_heads=[1, 1, 1, 1]),
    decode_head=dict(in_channels=[8, 8, 8, 8], channels=16),
"""
DIFFUSION_MODEL = """
    backbone=dict(
        base={base!r},
        features=dict(out_channels=8, taps=["up_blocks.1", "up_blocks.0"]),
        text=dict(
            categories="eos",
            scenes=["a city street scene by day", "a city street scene at night"],
        ),
    ),
    prompt_randomization=dict(),
    ipkl=dict(probability=0.5),
    neck=dict(in_channels=[8, 8], out_channels=8, num_outs=2),
    decode_head=dict(in_channels=[8, 8], in_index=[0, 1], channels=16),
"""


def write_dataset(
    folder: Path, n: int, *, seed: int = 0, conditions: tuple[str, ...] = (), void_rows: int = 2
) -> Path:
    """Write `n` labelled images of 32x64 with blocks of random classes and some void."""
    rng = np.random.default_rng(seed)
    writer = DatasetWriter(folder, config={"seed": seed})
    for index in range(n):
        label = np.kron(rng.integers(0, 17, (4, 8)), np.ones((8, 8))).astype(np.uint8)
        image = np.stack([label * 13, 255 - label * 12, label * 7], axis=-1)
        label[:void_rows] = 255
        row = {"condition": conditions[index % len(conditions)]} if conditions else {}
        writer.write(index, image, label, row)
    return folder


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six labelled images."""
    return write_dataset(tmp_path_factory.mktemp("data") / "source", 6)


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory, source: Path) -> Path:
    """The pocket SegFormer recipe with a tiny network and six steps."""
    path = tmp_path_factory.mktemp("recipes") / "tiny.py"
    base = str(RECIPES / "segformer_pocket.py")
    path.write_text(TINY_SEGFORMER.format(base=base, data=str(source), model=SEGFORMER_MODEL))
    return path


@pytest.fixture(scope="session")
def tiny_diffusion_recipe(
    tmp_path_factory: pytest.TempPathFactory, source: Path, tiny_base: Path
) -> Path:
    """The pocket diffusion recipe on the tiny random base."""
    path = tmp_path_factory.mktemp("recipes") / "tiny_diffusion.py"
    model = DIFFUSION_MODEL.format(base=str(tiny_base))
    base = str(RECIPES / "diffusion_pocket.py")
    path.write_text(TINY_SEGFORMER.format(base=base, data=str(source), model=model))
    return path


@pytest.fixture(scope="session")
def trained(
    tmp_path_factory: pytest.TempPathFactory, tiny_diffusion_recipe: Path, source: Path
) -> Path:
    """A network with scene prompts on the tiny random base, trained for six steps."""
    from segtrain import train

    folder = tmp_path_factory.mktemp("trained") / "run"
    config = train.Config(recipe=tiny_diffusion_recipe, source=source, output=folder)
    train.run(config, train.check(config))
    return folder


@pytest.fixture(scope="session")
def make_dataset() -> object:
    """The function `write_dataset`."""
    return write_dataset


@pytest.fixture(scope="session")
def shrink(tmp_path_factory: pytest.TempPathFactory, source: Path) -> Callable[[str, str], Path]:
    """A function that writes a shipped recipe with toy data, a toy network and six steps."""
    folder = tmp_path_factory.mktemp("networks")

    def write(name: str, model: str) -> Path:
        path = folder / f"tiny_{name}.py"
        base = str(RECIPES / f"{name}.py")
        text = TINY_SEGFORMER.format(base=base, data=str(source), model=model)
        path.write_text(text + WHOLE_FRAMES)
        return path

    return write
