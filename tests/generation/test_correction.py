"""In-sampling correction: its gradient, its effect, and that nothing else depends on it."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel

from finetune import controlnet as training
from generation import inputs, run
from generation.dry_run import forecast
from generation.sampler.attention import deterministic_kernels
from generation.sampler.correction import Correction, unit_gradient
from generation.sampler.denoiser import Control, Denoiser
from generation.sampler.fusion import prediction_for_x0
from generation.sampler.networks import load_networks
from generation.sampler.sampler import Sampler
from generation.samples import SampleSpec
from generation.setting_groups import CorrectionSettings
from generation.street_pipeline import StreetPipeline
from pipeline.errors import UserError
from pipeline.marks import Mark, write_marks
from pipeline.metadata import read_rows
from pipeline.prompt_encoder import Conditioning
from pipeline.segmentation_head import SegmentationHead, label_cross_entropy, label_shares


@pytest.fixture(scope="module")
def head(tiny_base, tiny_controlnet, tiny_dataset, tmp_path_factory):
    """A head trained on the tiny ControlNet."""
    output = tmp_path_factory.mktemp("head")
    options = (
        "--base", tiny_base, "--init", tiny_controlnet, "--data", tiny_dataset(n=4),
        "--output", output, "--segmentation-head.only", "--segmentation-head.learning-rate", "2e-2",
        "--crop.size-px", "32", "64", "--crop.scales", "1.0", "--rare-classes.min-pixels", "1",
        "--training.steps", "60", "--training.batch-size", "4", "--cached-crops", "8",
        "--training.gradient-accumulation", "1",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["controlnet.py", *map(str, options)])
        assert not training.main()
    return output / "segmentation_head"


@pytest.fixture(scope="module")
def corrected(tiny_config, head):
    """Settings of the tiny networks with a correction of two of three steps."""
    settings = CorrectionSettings(scale=0.5, steps=0.6, head=str(head))
    return replace(tiny_config, correction=settings)


@pytest.fixture(scope="module")
def networks(corrected):
    return load_networks(corrected, torch.device("cpu"))


def test_gradient_is_that_of_finite_differences():
    """In float64, by the stock forward passes of diffusers and torch's own cross entropy."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16, 16), layers_per_block=1, norm_num_groups=4,
        cross_attention_dim=12, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    network = ControlNetModel.from_unet(
        unet, conditioning_channels=20, conditioning_embedding_out_channels=(4, 8)
    )
    for layer in (*network.controlnet_down_blocks, network.controlnet_mid_block):
        torch.nn.init.normal_(layer.weight, std=0.3)
    head = SegmentationHead.from_unet(unet, 8)
    assert head.config.taps == ["up_blocks.0", "up_blocks.1"]
    for module in (unet, network, head):
        module.double().requires_grad_(False).eval()
    tiles, text = torch.randn(2, 4, 8, 12).double(), torch.randn(2, 5, 12).double()
    ids = torch.randint(0, 19, (2, 8, 12))
    ids[:, :2] = 255
    shares = torch.nn.functional.one_hot(ids.clamp(max=19), 20).movedim(-1, 1)[:, :19].double()
    condition, timestep = torch.rand(2, 20, 16, 24).double(), torch.tensor(601)

    def loss(tiles):
        seen = []
        handles = [
            unet.up_blocks[index].register_forward_hook(lambda _, __, output: seen.append(output))
            for index in range(2)
        ]
        down, mid = network(tiles, timestep, text, condition, 0.7, return_dict=False)
        unet(
            tiles, timestep, text, down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        )  # fmt: skip
        for handle in handles:
            handle.remove()
        hidden = sum(
            torch.nn.functional.interpolate(projection(feature), size=(8, 12))
            for projection, feature in zip(head.projections, seen, strict=True)
        )
        logits = head.conv_out(head.act(head.norm(hidden)))
        each = torch.nn.functional.cross_entropy(logits, ids, ignore_index=255, reduction="none")
        return each.sum(dim=(1, 2)) / (ids != 255).sum(dim=(1, 2))

    with torch.no_grad():
        directions = torch.randn(4, *tiles.shape).double()
        h = 1e-5
        expected = [(loss(tiles + h * d) - loss(tiles - h * d)) / (2 * h) for d in directions]

    denoiser = Denoiser(unet, [Control(network, 0.7)], torch.tensor([901, 601]))
    denoiser.prime(Conditioning(text), (16, 24))
    embedding = denoiser.embed(0, condition)
    rows = torch.tensor([0, 1])

    correction = Correction(head, 1.0, 1, 0.0)
    gradient = correction.gradient(
        tiles, lambda x: denoiser.features(x, 1, [embedding], rows, num_blocks=2), shares
    )
    pixels = 8 * 12
    for direction, slope in zip(directions, expected, strict=True):
        found = (gradient.double() * direction).sum(dim=(1, 2, 3)) / pixels
        assert torch.allclose(found, slope, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("alpha", [0.6, 0.01])
def test_correction_moves_the_clean_latent_by_the_same_in_all_prediction_types(kind, alpha):
    level = alpha, (1 - alpha**2) ** 0.5
    generator = torch.Generator().manual_seed(0)
    clean, latents, gradient = torch.randn(3, 2, 4, 5, 6, generator=generator).double()
    gradient[1] = 0  # a tile of void
    correction = Correction(SegmentationHead(tap_channels=(32,)), 0.3, 1, 0.5)
    before = prediction_for_x0(clean, latents, level, kind)
    after = correction.correct(before, gradient, level, kind)
    unit = gradient[0] / gradient[0].square().mean().sqrt()
    moved = torch.stack([clean[0] - 0.3 * level[1] ** 2 * unit, clean[1]])
    assert torch.allclose(after, prediction_for_x0(moved, latents, level, kind))
    if kind == "epsilon":  # classifier guidance
        expected = before[0] + 0.3 * level[1] * (alpha * unit)
        assert torch.allclose(after[0], expected)


def test_no_terminal_signal_is_no_fault():
    correction = Correction(SegmentationHead(tap_channels=(32,)), 1.0, 1, 0.5)
    found = correction.correct(torch.zeros(1, 4, 2, 2), torch.ones(1, 4, 2, 2), (0.0, 1.0),
                               "v_prediction")  # fmt: skip
    assert torch.equal(found, torch.ones(1, 4, 2, 2))


@pytest.mark.parametrize("size", [1e-44, 1e-30, 1e-25, 1.0, 1e20, 1e38])
def test_length_of_the_gradient_does_not_matter(size):
    """float32 gradients down to the smallest and up to the largest; the oracle is in float64."""
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(2, 4, 5, 6, generator=generator).clamp(-3, 3) * size
    exact = gradient.double()
    expected = exact / exact.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    found = unit_gradient(gradient)
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-6)
    if size == 1.0:
        plain = gradient / gradient.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        assert torch.equal(found, plain)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 0.0])
def test_tile_without_usable_gradient_keeps_its_prediction(value):
    gradient = torch.ones(2, 4, 2, 2)
    gradient[0] = 0
    gradient[0, 0, 0, 0] = value
    prediction = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    correction = Correction(SegmentationHead(tap_channels=(32,)), 1.0, 1, 0.5)
    found = correction.correct(prediction, gradient, (0.6, 0.8), "epsilon")
    assert torch.equal(found[0], prediction[0])
    assert torch.allclose(found[1], prediction[1] + 0.48)


def test_gradients_that_are_not_finite_are_counted(networks, corrected, make_label, monkeypatch):
    """The first tile of each call overflows, as in float16; the image is sound."""
    networks.set_scheduler(corrected)
    label = make_label(32, 64)
    gradient = Correction.gradient

    def overflow(*arguments):
        found = gradient(*arguments)
        found[0] = float("inf")
        return found

    config = replace(corrected, tile_batch=1)
    sample = Sampler(networks, config).generate(label, "road", 0)
    assert sample.uncorrected == 0 and "uncorrected" not in sample.row
    monkeypatch.setattr(Correction, "gradient", overflow)
    lost = Sampler(networks, config).generate(label, "road", 0)
    assert lost.row["uncorrected"] == lost.gradients == sample.gradients
    off = replace(config, correction=replace(config.correction, scale=0.0))
    assert np.array_equal(lost.image, Sampler(networks, off).generate(label, "road", 0).image)


def test_deterministic_kernels_are_chosen_for_cuda_and_given_back():
    def state():
        cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
        fused = (cuda.flash_sdp_enabled, cuda.mem_efficient_sdp_enabled, cuda.cudnn_sdp_enabled)
        return cudnn.deterministic, cudnn.benchmark, [kernel() for kernel in fused]

    before = state()
    with deterministic_kernels(torch.device("cpu")):
        assert state() == before
    with deterministic_kernels(torch.device("cuda", 0)):
        assert state() == (True, False, [False] * 3) != before
        assert torch.backends.cuda.math_sdp_enabled()
    assert state() == before


def cross_entropy_of_latents(networks, config, label, seed):
    """The head's cross entropy of the final latent of the base pass, at the last step."""
    latents = []
    sampler = Sampler(networks, config)
    step = type(sampler.base_pass).denoise

    def keep(batcher, canvases):
        step(batcher, canvases)
        latents.append(canvases[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(sampler.base_pass), "denoise", keep)
        sampler.generate(label, "road", seed)
    canvas = latents[0]
    shares = label_shares(canvas.conditions[0], canvas.latents.shape[-2:])
    with torch.no_grad():
        features = networks.denoiser.features(
            canvas.latents, config.steps - 1, canvas.embeddings(networks.denoiser, 0),
            torch.tensor([1]), num_blocks=1,
        )  # fmt: skip
        logits = networks.head(features, canvas.latents.shape[-2:])
    return float(label_cross_entropy(logits, shares, config.correction.class_balance))


@pytest.mark.parametrize("solver", ["ddim", "dpm++2m", "unipc"])
def test_correction_lowers_the_cross_entropy_of_the_sample(networks, corrected, make_label, solver):
    config = replace(corrected, scheduler=solver, steps=6, fusion="none", base_pass_scale=1.0)
    networks.set_scheduler(config)
    off = replace(config, correction=replace(config.correction, scale=0.0))
    for seed in range(3):
        label = make_label(32, 64, seed)
        before, after = (cross_entropy_of_latents(networks, c, label, seed) for c in (off, config))
        assert after < before


def test_off_is_bit_equal(networks, corrected, tiny_config, loaded, make_label):
    networks.set_scheduler(corrected)
    loaded.set_scheduler(tiny_config)
    label = make_label(32, 64)
    plain = Sampler(loaded, tiny_config).generate(label, "road", 0)
    for changes in ({"scale": 0.0}, {"steps": 0.0}):
        off = replace(corrected, correction=replace(corrected.correction, **changes))
        sample = Sampler(networks, off).generate(label, "road", 0)
        assert np.array_equal(sample.image, plain.image) and sample.gradients == 0
    sample = Sampler(networks, corrected).generate(label, "road", 0)
    assert not np.array_equal(sample.image, plain.image)
    assert sample.evaluations == plain.evaluations == 3 * (1 + sample.tiles)
    assert sample.gradients == 2 * (1 + sample.tiles)


@pytest.mark.parametrize("preset", ["aligned", "reference", "none"])
def test_company_does_not_change_a_corrected_image(networks, corrected, make_label, preset):
    config = replace(corrected, fusion=preset, image_batch=3)
    networks.set_scheduler(config)
    sampler = Sampler(networks, config)
    requests = [SampleSpec(make_label(32, 64, i), f"road {i}", i) for i in range(3)]
    together = sampler.generate_all(requests)
    other_order = sampler.generate_all(requests[::-1])[::-1]
    alone = [sampler.generate_all([request])[0] for request in requests]
    for a, b, c in zip(together, other_order, alone, strict=True):
        assert np.array_equal(a.image, b.image) and np.array_equal(a.image, c.image)
    single = Sampler(networks, replace(config, image_batch=1, tile_batch=1))
    again = single.generate_all(requests[:1])[0].image.astype(int)
    assert np.abs(again - together[0].image).max() <= 1


def test_gradient_takes_the_prompt_alone(networks, corrected, make_label):
    """Without guidance, the negative prompt changes nothing; nor with a correction."""
    networks.set_scheduler(corrected)
    config = replace(corrected, guidance_scale=1.0)
    images = [
        Sampler(networks, replace(config, negative_prompt=text)).generate(
            make_label(32, 64), "road", 0
        )
        for text in ("", "snowy night")
    ]
    assert np.array_equal(images[0].image, images[1].image)


def copy_with(head, folder, **changes):
    """Copy the folder of a head, with changes of its config."""
    folder.mkdir()
    for path in head.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    if changes:
        config = json.loads((head / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_heads_that_do_not_fit_are_refused(corrected, head, tmp_path):
    def refused(folder, message):
        settings = replace(corrected.correction, head=folder)
        with pytest.raises(UserError, match=message):
            inputs.check_models(replace(corrected, correction=settings))

    refused(
        "", r"--correction.scale 0.5: .*segmentation_head holds no segmentation head; train one"
    )
    refused(str(tmp_path), "--segmentation-head.only --init .* --correction.head")
    names = [f"class {i}" for i in range(19)]
    refused(copy_with(head, tmp_path / "names", class_names=names), "other than the 19 of label")
    refused(copy_with(head, tmp_path / "few", class_names=names[:3]), "predicts 3 classes")
    other = copy_with(head, tmp_path / "unet", cross_attention_dim=768)
    refused(other, "does not fit --base .*text width 768 against 16")
    refused(copy_with(head, tmp_path / "taps", taps=["mid_block"]), "must be the first up blocks")
    settings = replace(
        corrected.correction, head=copy_with(head, tmp_path / "x", hidden_channels=8)
    )
    with pytest.raises(UserError, match="does not hold the network of its config.json"):
        inputs.check_loadable(replace(corrected, correction=settings))


def test_head_and_settings_are_in_the_identity_of_a_run(corrected, tiny_config, head, tmp_path):
    known = inputs.read_inputs(replace(tiny_config, output=tmp_path / "set"))
    off, on = (inputs.identify(config, known) for config in (tiny_config, corrected))
    moved = replace(corrected.correction, head=copy_with(head, tmp_path / "copy"))
    assert "correction.head" in on["models"] and "correction.head" not in off["models"]
    assert off["correction"]["scale"] == 0 and on["correction"]["scale"] == 0.5
    assert inputs.identify(replace(corrected, correction=moved), known) == on
    text = forecast(known.plan[:2], known.specs, replace(corrected, output=tmp_path / "set"))
    assert "in-sampling correction:" in text and "gradients an image = 2 steps x" in text


def test_saved_pipeline_brings_its_head(
    corrected, tiny_base, tiny_controlnet, make_label, tmp_path
):
    pipe = StreetPipeline(corrected)
    label = make_label(32, 64)
    expected = pipe(label, "road", generator=3).images[0]
    pipe.save_pretrained(tmp_path / "pipe")
    again = StreetPipeline.from_pretrained(tmp_path / "pipe")
    assert again.settings.correction.is_on and not again.settings.correction.head
    found = again(label, "road", generator=3).images[0]
    assert np.array_equal(np.asarray(found), np.asarray(expected))


def test_corrected_samples_are_generated_again(head, flags, tmp_path, monkeypatch):
    """The head comes back from run.json, and may be named where it lies now."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["run.py", *map(str, words)])
        return run.main() or 0

    first = copy_with(head, tmp_path / "first")
    correction = ("--correction.scale", 0.5, "--correction.steps", 0.6, "--correction.head", first)
    assert call(*flags, *correction, "--n", 1, "--output", tmp_path / "set") == 0
    write_marks(tmp_path / "set", {"00000000": Mark(excluded=True)})
    again = ("--regenerate", tmp_path / "set", "--output", tmp_path / "again")
    assert call(*again) == 0
    assert read_rows(tmp_path / "again")["00000000"]["attempt"] == 1
    Path(first).rename(tmp_path / "moved")
    with pytest.raises(UserError, match="holds no segmentation head"):
        call(*again)
    assert call(*again, "--correction.head", tmp_path / "moved") == 0
    other = copy_with(head, tmp_path / "other", note="of other contents")
    with pytest.raises(UserError, match="models.correction.head: .* by .*--correction.head"):
        call(*again, "--correction.head", other)
