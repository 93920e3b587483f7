"""Every stage works on every family of base model: Stable Diffusion 1.5, 2.1 (v) and XL, tiny."""

import json
import sys
from pathlib import Path

import pytest
import torch

SMALL = (
    "--crop.size-px", "32", "64", "--crop.scales", "0.5", "1.0", "--training.batch-size", "2",
    "--training.steps", "2", "--training.gradient-accumulation", "1",
    "--training.learning-rate", "1e-3",
)  # fmt: skip


def call(main, *arguments: object) -> None:
    """Run a program's `main` in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["program", *map(str, arguments)])
        assert not main()


@pytest.fixture(scope="module", params=["sd15", "sd21", "sdxl"])
def base(request, family_base) -> Path:
    return family_base(request.param)


@pytest.fixture(scope="module")
def adapted(base, tiny_dataset, tmp_path_factory) -> Path:
    """U_S and ControlNet of the family, two updates each."""
    from finetune import controlnet, unet

    folder = tmp_path_factory.mktemp("adapted")
    common = ("--data", tiny_dataset(n=3), "--base", base, *SMALL, "--min-snr-gamma", "5")
    call(unet.main, *common, "--output", folder / "unet", "--previews", "1")
    call(
        controlnet.main, *common, "--unet", folder / "unet" / "unet", "--output",
        folder / "controlnet", "--rare-classes.min-pixels", "10", "--previews", "2",
    )  # fmt: skip
    return folder


def test_finetuning_writes_stock_networks_and_previews(base, adapted):
    from diffusers import ControlNetModel, UNet2DConditionModel
    from PIL import Image

    before = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    unet = UNet2DConditionModel.from_pretrained(adapted / "unet" / "unet")
    net = ControlNetModel.from_pretrained(adapted / "controlnet" / "controlnet")
    assert unet.config.addition_embed_type == before.config.addition_embed_type
    assert not torch.equal(unet.conv_in.weight, before.conv_in.weight)
    assert net.config.conditioning_channels == 20
    assert float(net.controlnet_mid_block.weight.detach().abs().sum()) > 0
    sheet = Image.open(adapted / "controlnet" / "previews" / "step-00000002.png")
    assert sheet.size == (3 * 64, 2 * 32)  # label, U_S + C, U_P + C
    rows = (adapted / "controlnet" / "metrics.jsonl").read_text().splitlines()
    assert abs(json.loads(rows[-1])["controllability"]) < 1
    assert Image.open(adapted / "unet" / "previews" / "step-00000002.png").size == (2 * 64, 32)


def test_generation_uses_it(base, adapted, tmp_path):
    from generation import run
    from pipeline.dataset import open_dataset

    from_labels = tmp_path / "labels"
    from_labels.mkdir()
    import numpy as np
    from PIL import Image

    label = np.full((32, 64), 10, np.uint8)
    label[16:], label[10:20, 20:40] = 0, 13
    Image.fromarray(label).save(from_labels / "a.png")
    call(
        run.main, "--base", base, "--controlnet", adapted / "controlnet" / "controlnet",
        "--label-maps", from_labels, "--crop-px", 32, 64, "--tile-px", 16, 32, "--stride-px", 8, 16,
        "--steps", 2, "--rare-classes.min-pixels", 4, "--n", 1, "--output", tmp_path / "set",
    )  # fmt: skip
    assert len(open_dataset(tmp_path / "set", labelled=True)) == 1


def test_diffusion_backbone_gives_features(base, adapted):
    from segtrain.diffusion.backbone import DiffusionBackbone

    features = {"taps": ("up_blocks.1", "up_blocks.0"), "out_channels": 8}
    own = DiffusionBackbone(str(base), text={"scenes": ["a city street"]}, features=features)
    other = DiffusionBackbone(str(base), str(adapted / "unet" / "unet"), features=features)
    images = torch.zeros(2, 3, 37, 51)
    assert [tuple(m.shape) for m in own(images)] == [(2, 8, 10, 13)] * 2
    context = own.text()
    first, second = (b.extractor(images, context)[0] for b in (own, other))
    assert not torch.equal(first, second)
