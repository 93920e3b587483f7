"""Another autoencoder for a U-Net and a ControlNet: the networks see the latents that they know."""

import sys

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    UNet2DConditionModel,
)

from experiments import change_autoencoder as program
from pipeline.errors import UserError


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_the_map_between_latents_is_found():
    """Of linear latents with noise: directions of the rows, and the share that noise leaves."""
    matrix, new = random(4, 6).double(), random(20_000, 6).double()
    clean = new @ matrix.T
    noise = random(20_000, 4).double() * clean.std(0) * 0.5
    found, explained = program.fit_map(new, clean + noise + 3)
    assert torch.allclose(found, matrix / matrix.norm(dim=1, keepdim=True), atol=0.02)
    assert explained == pytest.approx(1 / 1.25, abs=0.01)


def test_networks_see_mapped_latents(tiny_base, tiny_controlnet):
    """Through the map, inputs and outputs of the changed networks are those of the old ones."""
    unet = UNet2DConditionModel.from_pretrained(tiny_base, subfolder="unet")
    controlnet = ControlNetModel.from_pretrained(tiny_controlnet)
    old = unet.config.in_channels
    matrix = random(old, old + 3).double()
    matrix /= matrix.norm(dim=1, keepdim=True)
    latents = random(2, old + 3, 16, 16)
    mapped = torch.einsum("cn,bnhw->bchw", matrix.float(), latents)
    text = random(2, 5, unet.config.cross_attention_dim)
    with torch.no_grad():
        changed = program.change_channels(unet, matrix)(latents, 7, text).sample
        expected = unet(mapped, 7, text).sample
        seen = torch.einsum("cn,bnhw->bchw", matrix.float(), changed)
        assert torch.allclose(seen, expected, atol=1e-4)
        control = random(2, controlnet.config.conditioning_channels, 64, 64)
        sides = [
            network(inputs, 7, text, control, return_dict=False)[1]
            for network, inputs in (
                (program.change_channels(controlnet, matrix), latents),
                (controlnet, mapped),
            )
        ]
        assert torch.allclose(*sides, atol=1e-4)


@pytest.fixture
def call(monkeypatch, tiny_base, tiny_controlnet, tiny_dataset, tmp_path):
    """A function that runs the program with another autoencoder of the given channels."""

    def run(channels: tuple[int, ...], *arguments: object) -> None:
        old = AutoencoderKL.from_pretrained(tiny_base, subfolder="vae")
        settings = {k: v for k, v in old.config.items() if k[0] != "_"}
        settings |= {"latent_channels": 6, "block_out_channels": channels}
        for part in ("down", "up"):
            (kind,) = set(settings[f"{part}_block_types"])
            settings[f"{part}_block_types"] = (kind,) * len(channels)
        AutoencoderKL(**settings).save_pretrained(tmp_path / "vae")
        paths = {"base": tiny_base, "controlnet": tiny_controlnet, "data": tiny_dataset(4)}
        paths |= {"vae": tmp_path / "vae", "output": tmp_path / "made"}
        flags = [word for name, path in paths.items() for word in (f"--{name}", path)]
        argv = ["program", *flags, "--images", 3, *arguments]
        monkeypatch.setattr(sys, "argv", [str(word) for word in argv])
        program.main()

    return run


def test_the_folders_are_those_of_stock_pipelines(call, tiny_base, tmp_path):
    levels = AutoencoderKL.from_pretrained(tiny_base, subfolder="vae").config.block_out_channels
    call(tuple(levels))
    controlnet = ControlNetModel.from_pretrained(tmp_path / "made" / "controlnet")
    pipe = StableDiffusionControlNetPipeline.from_pretrained(
        tmp_path / "made" / "base", controlnet=controlnet, torch_dtype=torch.float32
    )
    channels = {pipe.unet.config.in_channels, pipe.unet.config.out_channels}
    assert channels == {pipe.vae.config.latent_channels} == {controlnet.config.in_channels} == {6}
    with pytest.raises(UserError, match="holds base already"):
        call(tuple(levels))


def test_another_reduction_is_refused(call, tiny_base):
    levels = AutoencoderKL.from_pretrained(tiny_base, subfolder="vae").config.block_out_channels
    with pytest.raises(UserError, match="name one that reduces them alike"):
        call((*levels, levels[-1]))
