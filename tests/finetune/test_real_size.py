"""One update of each program at Stable Diffusion 1.5's size, random weights, GTA's file format.

Takes some 16 GB of memory, 20 GB of disk and several minutes without a GPU, so only on request:

    python -m pytest -m slow tests/finetune/test_real_size.py
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from PIL import Image

pytestmark = pytest.mark.slow
PATIENCE_S = 3600
ONE_UPDATE = (
    "--training.steps", "1", "--training.batch-size", "1", "--training.gradient-accumulation", "1",
    "--previews", "0", "--gradient-checkpointing", "True",
)  # fmt: skip


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder that goes away afterwards; it grows to 20 GB."""
    folder = tmp_path_factory.mktemp("real")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def base(workspace: Path, run_program) -> Path:
    """A pipeline folder of the released architecture."""
    run_program("benchmarks/random_base.py", "--output", workspace / "base", timeout_s=PATIENCE_S)
    config = UNet2DConditionModel.load_config(workspace / "base" / "unet")
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
    return workspace / "base"


@pytest.fixture(scope="module")
def data(workspace: Path, run_program) -> Path:
    """Three frames as GTA ships them, 1914x1052 with palette labels of ids 0..34, prepared."""
    for index in range(1, 4):
        rng = np.random.default_rng(index)
        ids = rng.integers(0, 35, (11, 20), dtype=np.uint8).repeat(96, 0).repeat(96, 1)
        label = Image.fromarray(np.ascontiguousarray(ids[:1052, :1914]), mode="P")
        label.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tobytes())
        pixels = Image.fromarray(rng.integers(0, 256, (1052, 1914, 3), dtype=np.uint8))
        for folder, image in (("images", pixels), ("labels", label)):
            (workspace / "gta" / folder).mkdir(parents=True, exist_ok=True)
            image.save(workspace / "gta" / folder / f"{index:05d}.png", compress_level=1)
    output = workspace / "data"
    run_program(
        "pipeline/prepare.py", "--dataset", "gta", "--root", workspace / "gta", "--split", "all",
        "--output", output,
    )  # fmt: skip
    return output


def test_one_update_of_each_program(base, data, workspace, run_program):
    common = ("--base", base, "--data", data, *ONE_UPDATE)
    recipes = "configs/finetune"
    run_program(
        "finetune/unet.py", "--config", f"{recipes}/unet_gta_sd15.yaml", *common, "--output",
        workspace / "unet", "--training.precision", "fp32", timeout_s=PATIENCE_S,
    )  # fmt: skip
    shutil.rmtree(workspace / "unet" / "checkpoints")
    run_program(
        "finetune/controlnet.py", "--config", f"{recipes}/controlnet_gta_sd15.yaml", *common,
        "--unet", workspace / "unet" / "unet", "--output", workspace / "controlnet",
        "--training.precision", "fp32", timeout_s=PATIENCE_S,
    )  # fmt: skip
    net = ControlNetModel.from_pretrained(workspace / "controlnet" / "controlnet")
    assert sum(p.numel() for p in net.parameters()) == 361_279_120 + 17 * 16 * 9  # 20 channels
    assert float(net.controlnet_mid_block.weight.detach().abs().sum()) > 0
