"""The extractor: taps, early exit, odd sizes, trained parts, paths, attention maps."""

from pathlib import Path

import pytest
import torch

from pipeline import models
from pipeline.errors import UserError
from pipeline.latents import decode_latents, encode_latents
from pipeline.prompt_encoder import Conditioning, PromptEncoder
from segtrain.diffusion.extractor import DiffusionExtractor, load_extractor
from segtrain.diffusion.options import Training
from segtrain.diffusion.released_diff import ReleasedDiffExtractor
from segtrain.diffusion.taps import as_map, attention_maps
from segtrain.diffusion.trajectories import Clean, Inversion, Noised, masked_mean

TAPS = ("up_blocks.1", "up_blocks.0")  # strides 4 and 4; the mid block has stride 8
HIDDEN = "up_blocks.1.attentions.0.transformer_blocks.0"


@pytest.fixture(scope="module")
def text(tiny_base: Path) -> Conditioning:
    return PromptEncoder(str(tiny_base)).encode([""])


def _image(height: int, width: int, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_taps_have_their_stride_and_channels(tiny_base: Path, text: Conditioning) -> None:
    taps = (*TAPS, "mid_block", "up_blocks.0.resnets.0.conv2", HIDDEN, "vae.encoder.down_blocks.0")
    extractor = load_extractor(str(tiny_base), taps=taps)
    shapes = [tuple(feature.shape) for feature in extractor(_image(32, 64), text)]
    assert shapes == [
        (2, 8, 8, 16),
        (2, 16, 8, 16),
        (2, 16, 4, 8),
        (2, 16, 4, 8),
        (2, 8, 8, 16),
        (2, 4, 16, 32),
    ]
    assert extractor.tap_shapes(text) == [(8, 4), (16, 4), (16, 8), (16, 8), (8, 4), (4, 2)]


@pytest.mark.parametrize("early_exit", [True, False])
def test_autoencoder_taps_are_its_features_at_every_level(
    tiny_base: Path, text: Conditioning, early_exit: bool
) -> None:
    names = ("encoder.down_blocks.0", "decoder.mid_block")
    extractor = load_extractor(
        str(tiny_base),
        taps=(TAPS[0], *(f"vae.{name}" for name in names)),
        trajectory=Noised((10, 50)),
        early_exit=early_exit,
    )
    features = extractor(_image(32, 64), text)
    vae = models.load_component(str(tiny_base), "vae")
    expected = []
    for name in names:
        vae.get_submodule(name).register_forward_hook(lambda _m, _i, out: expected.append(out))
    with torch.no_grad():
        decode_latents(vae, encode_latents(vae, _image(32, 64)))
    assert len(features) == 6
    for level in (0, 1):
        for feature, wanted in zip(features[3 * level + 1 : 3 * level + 3], expected, strict=True):
            torch.testing.assert_close(feature, wanted)


def test_inner_taps_are_the_parts_of_their_block(tiny_base: Path, text: Conditioning) -> None:
    block = "up_blocks.0.resnets.0"
    extractor = load_extractor(str(tiny_base), taps=(f"{block}.conv2", block), early_exit=False)
    inputs = []
    module = extractor.unet.get_submodule(block)
    module.register_forward_hook(lambda _m, given, _o: inputs.append(given[0]))
    residual, output = extractor(_image(32, 64), text)
    torch.testing.assert_close(module.conv_shortcut(inputs[0]) + residual, output)


@pytest.mark.parametrize("tap", ["mid_block", "up_blocks.0", "up_blocks.0.resnets.0", HIDDEN])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_early_exit_equals_the_full_pass_and_skips_the_rest(
    tiny_base: Path, text: Conditioning, tap: str, checkpointing: bool
) -> None:
    short = load_extractor(
        str(tiny_base), taps=(tap,), training=Training(checkpointing=checkpointing)
    )
    full = load_extractor(str(tiny_base), taps=(tap,), early_exit=False)
    calls = {"short": 0, "full": 0}

    def count(name: str) -> object:
        def hook(*_: object) -> None:
            calls[name] += 1

        return hook

    short.unet.conv_out.register_forward_hook(count("short"))
    full.unet.conv_out.register_forward_hook(count("full"))
    image = _image(32, 64)
    assert torch.equal(short(image, text)[0], full(image, text)[0])
    assert calls == {"short": 0, "full": 1}


def test_odd_sizes_are_padded_and_cropped(tiny_base: Path, text: Conditioning) -> None:
    extractor = load_extractor(str(tiny_base), taps=TAPS)
    image, multiple = _image(37, 51), extractor.grid.size_multiple
    size = [-(-side // multiple) * multiple for side in (37, 51)]
    padded = torch.nn.functional.pad(image, (0, size[1] - 51, 0, size[0] - 37), mode="replicate")
    for feature, whole in zip(extractor(image, text), extractor(padded, text), strict=True):
        assert feature.shape[-2:] == (10, 13)  # ceil(37 / 4), ceil(51 / 4)
        torch.testing.assert_close(feature, whole[..., :10, :13])
        assert feature.std() > 1e-3


def test_repeats_exactly_without_gradient_and_stays_frozen(
    tiny_base: Path, text: Conditioning
) -> None:
    extractor = load_extractor(str(tiny_base), taps=TAPS).train()
    image = _image(32, 32).requires_grad_()
    first, second = extractor(image, text), extractor(image, text)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not any(feature.requires_grad for feature in first)
    assert not extractor.unet.training
    assert list(extractor.parameters()) == [] and extractor.state_dict() == {}


def test_frozen_models_move_with_the_module(tiny_base: Path, text: Conditioning) -> None:
    extractor = load_extractor(str(tiny_base), taps=TAPS).double()
    image = _image(32, 32).double()
    assert extractor(image, text.map(torch.Tensor.double))[0].dtype == torch.float64


@pytest.mark.parametrize("training", ["full", "lora"])
def test_trained_parts_are_stored_and_learn(tiny_base: Path, text: Conditioning, training) -> None:
    pytest.importorskip("peft")
    extractor = load_extractor(str(tiny_base), taps=TAPS, training=Training(training, rank=2))
    names = [name.rpartition("/")[2] for name in extractor.trained]
    assert len(names) > 4
    assert all(("lora" in key) == (training == "lora") for key in extractor.trained)
    sum(f.square().mean() for f in extractor(_image(32, 32), text)).backward()
    optimizer = torch.optim.SGD(extractor.parameters(), lr=1.0)
    optimizer.step()
    state, changed = extractor.state_dict(), extractor(_image(32, 32), text)
    fresh = load_extractor(str(tiny_base), taps=TAPS, training=Training(training, rank=2))
    assert not torch.equal(fresh(_image(32, 32), text)[0], changed[0])
    fresh.load_state_dict(state)
    assert torch.equal(fresh(_image(32, 32), text)[0], changed[0])


@pytest.mark.parametrize("tap", ["up_blocks.1", HIDDEN])
def test_gradients_reach_the_prompt_alone_and_checkpointing_keeps_them(
    tiny_base: Path, text: Conditioning, tap: str
) -> None:
    gradients = []
    for checkpointing in (False, True):
        extractor = load_extractor(
            str(tiny_base), taps=(tap,), training=Training(checkpointing=checkpointing)
        )
        states = text.states.clone().requires_grad_()
        extractor(_image(32, 32), Conditioning(states))[0].square().mean().backward()
        gradients.append(states.grad)
        assert all(p.grad is None for p in extractor.unet.parameters())
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize(
    "trajectory", [Clean(), Noised((10, 300)), Inversion((20, 60, 100), (60, 0, 20), eta=1.0)]
)
def test_any_batch_and_trajectory_repeats(tiny_base: Path, text: Conditioning, trajectory) -> None:
    extractor = load_extractor(str(tiny_base), taps=TAPS, trajectory=trajectory)
    image = _image(32, 32, batch=11)
    maps = extractor(image, text)
    assert len(maps) == len(TAPS) * len(trajectory.levels)
    assert all(torch.equal(a, b) for a, b in zip(maps, extractor(image, text), strict=True))
    alone = extractor(image[3:4], text)
    for a, b in zip(maps, alone, strict=True):
        torch.testing.assert_close(a[3:4], b, rtol=1e-4, atol=1e-5)


def test_attention_maps_sum_to_one_over_tokens_on_any_aspect(tiny_base: Path) -> None:
    text = PromptEncoder(str(tiny_base)).encode(["a road and a car"])
    extractor = load_extractor(str(tiny_base), taps=(f"{HIDDEN}.attn2:maps", HIDDEN))
    maps, hidden = extractor(_image(32, 80), text)
    assert maps.shape == (2, text.states.shape[1], 8, 20)
    torch.testing.assert_close(maps.sum(1), torch.ones(2, 8, 20))
    assert hidden.shape == (2, 8, 8, 20)


def test_attention_maps_are_those_of_diffusers(tiny_base: Path) -> None:
    unet = load_extractor(str(tiny_base), taps=TAPS).unet
    attention = unet.up_blocks[1].attentions[0].transformer_blocks[0].attn2
    hidden = torch.randn(2, 12, attention.to_q.in_features)
    states = torch.randn(2, 7, attention.to_k.in_features)
    with torch.no_grad():
        rows = [
            attention.head_to_batch_dim(f(x))
            for f, x in ((attention.to_q, hidden), (attention.to_k, states))
        ]
        scores = attention.get_attention_scores(*rows).unflatten(0, (2, attention.heads))
        torch.testing.assert_close(attention_maps(attention, hidden, states), scores.mean(1))


def test_tokens_become_maps_in_their_order() -> None:
    feature = torch.rand(2, 5, 4, 6)
    assert torch.equal(as_map(feature.flatten(2).transpose(1, 2), (8, 12)), feature)


def test_paths_of_one_prompt_equal_none_and_masks_choose_their_prompt(tiny_base: Path) -> None:
    encoder = PromptEncoder(str(tiny_base))
    both, first, second = (
        encoder.encode(prompts) for prompts in (["a road", "snow"], ["a road"], ["snow"])
    )
    for trajectory in (Clean(), Noised((10, 90)), Inversion((10, 20, 30), (20, 0))):
        extractor = load_extractor(str(tiny_base), taps=TAPS, trajectory=trajectory)
        image, found = _image(32, 32), []
        for context, masks in (
            (both, torch.stack([torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8)])),
            (both, torch.stack([torch.ones(2, 1, 8, 8), torch.zeros(2, 1, 8, 8)])),
            (encoder.encode(["snow"] * 2), torch.rand(2, 2, 1, 8, 8)),
        ):
            found.append([f for _, _, f in extractor.features(image, context, masks=masks)])
        for maps, context in zip(found, (second, first, second), strict=True):
            plain = [f for _, _, f in extractor.features(image, context)]
            for a, b in zip(maps, plain, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_masked_mean_weighs_by_the_share_of_the_mask() -> None:
    values = torch.tensor([1.0, 4.0]).view(2, 1, 1, 1, 1).expand(2, 1, 1, 2, 2)
    masks = torch.ones(2, 1, 1, 4, 4)
    masks[1, :, :, :, 1:] = 0
    expected = torch.tensor([[(1 + 0.5 * 4) / 1.5, 1.0]] * 2)
    torch.testing.assert_close(masked_mean(values, masks)[0, 0], expected)


def test_guidance_between_equal_prompts_changes_hidden_states_by_a_factor(
    tiny_base: Path, text: Conditioning
) -> None:
    """The released DIFF sums transformer rows; guidance of equal prompts is else no guidance."""
    options = {"taps": (TAPS[1], HIDDEN), "trajectory": Inversion((10, 20, 30), (20, 10, 0))}
    base = str(tiny_base)
    plain = load_extractor(base, **options)
    released = load_extractor(base, **options, kind=ReleasedDiffExtractor)
    latents = plain.encode(_image(32, 32))
    both = []
    for extractor in (plain, released):
        extractor.schedule.prediction_type = "epsilon"
        found = extractor.features(_image(32, 32), text, latents=latents)
        both.append([feature for _, _, feature in found])
    for number, (a, b) in enumerate(zip(*both, strict=True)):
        torch.testing.assert_close((1, 2)[number % 2] * a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("taps", [("up_blocks.7",), ("up_blocks.0:maps",), (), TAPS + TAPS])
def test_unknown_tap_is_an_error_that_names_good_ones(tiny_base: Path, taps) -> None:
    with pytest.raises(UserError, match="up_blocks.0, up_blocks.1"):
        load_extractor(str(tiny_base), taps=taps)


@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
def test_families_of_base_models(family: str, family_base) -> None:
    base = str(family_base(family))
    text = PromptEncoder(base).encode(["a street at night"])
    extractor = load_extractor(base, taps=("up_blocks.0",), trajectory=Inversion((10, 20), (10, 0)))
    assert isinstance(extractor, DiffusionExtractor)
    assert extractor.schedule.prediction_type == (
        models.load_scheduler(base).config.prediction_type
    )
    maps = extractor(_image(32, 48), text)
    assert len(maps) == 2 and all(torch.isfinite(m).all() for m in maps)


def test_attention_maps_do_not_overflow_in_float16(tiny_base: Path) -> None:
    """Products of queries and keys of Stable Diffusion 2.1 exceed 65504."""
    unet = models.load_component(str(tiny_base), "unet")
    attention = unet.get_submodule(HIDDEN).attn2
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 8, attention.to_q.in_features, generator=rng) * 3e3
    states = torch.randn(1, 5, attention.to_k.in_features, generator=rng) * 3e3
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.float16):
        maps = attention_maps(attention, hidden, states)
    torch.testing.assert_close(maps.sum(-1), torch.ones(1, 8))


def test_inversion_keeps_its_latents_in_float32_under_autocast(
    tiny_base: Path, text: Conditioning
) -> None:
    """A step between neighbouring noise levels is smaller than a step of bfloat16."""
    trajectory = Inversion(targets=(1, 2, 3, 4), saved=(3, 0))
    extractor = load_extractor(str(tiny_base), taps=TAPS, trajectory=trajectory)
    seen = []
    extractor.unet.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        extractor(_image(16, 32), text)
    assert len(seen) == 4 and {latents.dtype for latents in seen} == {torch.float32}
