"""The extractor: tap shapes, early exit, odd sizes, frozen and deterministic."""

from pathlib import Path

import pytest
import torch

from pipeline.errors import UserError
from segtrain.diffusion_backbone import DiffusionBackbone
from segtrain.extractor import load_extractor

TAPS = ("up_blocks.1", "up_blocks.0")  # strides 4 and 4; the mid block has stride 8


def _image(height: int, width: int) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_taps_have_their_stride_and_channels(tiny_base: Path) -> None:
    extractor = load_extractor(str(tiny_base), taps=(*TAPS, "mid_block"))
    shapes = [tuple(feature.shape) for feature in extractor(_image(32, 64))]
    assert shapes == [(2, 8, 8, 16), (2, 16, 8, 16), (2, 16, 4, 8)]
    assert extractor.tap_channels() == [8, 16, 16]


@pytest.mark.parametrize("tap", ["mid_block", "up_blocks.0", "up_blocks.0.resnets.0"])
def test_early_exit_equals_the_full_pass_and_skips_the_rest(tiny_base: Path, tap: str) -> None:
    short = load_extractor(str(tiny_base), taps=(tap,))
    full = load_extractor(str(tiny_base), taps=(tap,), early_exit=False)
    calls = {"short": 0, "full": 0}

    def count(name: str) -> object:
        def hook(*_: object) -> None:
            calls[name] += 1

        return hook

    short.unet.conv_out.register_forward_hook(count("short"))
    full.unet.conv_out.register_forward_hook(count("full"))
    image = _image(32, 64)
    assert torch.equal(short(image)[0], full(image)[0])
    assert calls == {"short": 0, "full": 1}


def test_odd_sizes_are_padded_and_cropped(tiny_base: Path) -> None:
    extractor = load_extractor(str(tiny_base), taps=TAPS)
    for feature in extractor(_image(37, 51)):
        assert feature.shape[-2:] == (10, 13)  # ceil(37 / 4), ceil(51 / 4)


def test_repeats_exactly_without_gradient_and_stays_frozen(tiny_base: Path) -> None:
    extractor = load_extractor(str(tiny_base), taps=TAPS).train()
    image = _image(32, 32).requires_grad_()
    first, second = extractor(image), extractor(image)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not any(feature.requires_grad for feature in first)
    assert not extractor.unet.training
    assert list(extractor.parameters()) == [] and extractor.state_dict() == {}


def test_frozen_models_move_with_the_module(tiny_base: Path) -> None:
    extractor = load_extractor(str(tiny_base), taps=TAPS).double()
    assert extractor(_image(32, 32).double())[0].dtype == torch.float64


def test_unknown_tap_is_an_error_that_names_good_ones(tiny_base: Path) -> None:
    with pytest.raises(UserError, match="up_blocks.0, up_blocks.1"):
        load_extractor(str(tiny_base), taps=("up_blocks.7",))


def test_backbone_stores_and_trains_adapters_only(tiny_base: Path) -> None:
    backbone = DiffusionBackbone(str(tiny_base), taps=TAPS, out_channels=8)
    assert all(name.startswith("adapters.") for name in backbone.state_dict())
    maps = backbone(_image(32, 64))
    assert [tuple(m.shape) for m in maps] == [(2, 8, 8, 16)] * 2
    maps[0].sum().backward()
    assert backbone.adapters[0][1].weight.grad is not None
