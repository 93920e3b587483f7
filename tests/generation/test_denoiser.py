"""The shared evaluation equals the stock forward passes of diffusers, for every family."""

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel

from generation.sampler.denoiser import Control, Denoiser
from pipeline.prompt_encoder import Conditioning

TEXT, POOLED = 24, 16
SHARED = dict(
    sample_size=8,
    in_channels=4,
    out_channels=4,
    block_out_channels=(32, 64),
    layers_per_block=2,
    norm_num_groups=8,
    cross_attention_dim=TEXT,
)
ATTENTION_FIRST = dict(
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
)
ATTENTION_LAST = dict(
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
)
FAMILIES = {
    "sd15": dict(**ATTENTION_FIRST, attention_head_dim=4),
    "sd21": dict(**ATTENTION_FIRST, attention_head_dim=(2, 4), use_linear_projection=True),
    "pocket": dict(**ATTENTION_LAST, attention_head_dim=4),
    "sdxl": dict(
        **ATTENTION_LAST,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + POOLED,
    ),
}


def make_pair(family):
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**SHARED, **FAMILIES[family]).eval()
    controlnet = ControlNetModel.from_unet(
        unet, conditioning_channels=20, conditioning_embedding_out_channels=(8, 16, 16)
    ).eval()
    embedding = controlnet.controlnet_cond_embedding
    for layer in (
        *controlnet.controlnet_down_blocks,
        controlnet.controlnet_mid_block,
        embedding.conv_out,
    ):
        torch.nn.init.normal_(layer.weight, std=0.1)  # they start at zero
    return unet, controlnet


@pytest.mark.parametrize("size", [(8, 12), (6, 10)])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_equals_the_stock_forward_passes(family, size):
    unet, controlnet = make_pair(family)
    tiles, condition = torch.randn(3, 4, *size), torch.rand(3, 20, size[0] * 4, size[1] * 4)
    pooled = torch.randn(4, POOLED) if family == "sdxl" else None
    text = Conditioning(torch.randn(4, 7, TEXT), pooled)
    rows = torch.tensor([0, 0, 0, 1, 2, 3])

    known = text.map(lambda states: states[rows]).arguments((64, 64))
    twice, timestep = tiles.repeat(2, 1, 1, 1), torch.tensor(501)
    down, mid = controlnet(
        twice,
        timestep,
        **known,
        controlnet_cond=condition.repeat(2, 1, 1, 1),
        conditioning_scale=0.8,
        return_dict=False,
    )
    stock = unet(
        twice,
        timestep,
        **known,
        down_block_additional_residuals=down,
        mid_block_additional_residual=mid,
    ).sample
    controlled = (torch.arange(6) >= 3).float()[:, None, None, None]
    guess = unet(
        twice,
        timestep,
        **known,
        down_block_additional_residuals=[residual * controlled for residual in down],
        mid_block_additional_residual=mid * controlled,
    ).sample

    denoiser = Denoiser(unet, [Control(controlnet, 0.8)], torch.tensor([901, 501]))
    denoiser.prime(text, (64, 64))
    embeddings = [denoiser.embed(0, condition)]
    ours = denoiser(tiles, 1, embeddings, rows)
    assert (ours - stock).norm() / stock.norm() <= 5e-6
    alone = denoiser(tiles, 1, embeddings, rows[3:])
    assert (alone - stock[3:]).norm() / stock.norm() <= 5e-6

    denoiser.guess_mode_step = 1
    guided = denoiser(tiles, 1, embeddings, rows)
    assert (guided - guess).norm() / guess.norm() <= 5e-6
    assert torch.equal(denoiser(tiles, 1, embeddings, rows[3:]), alone)
    denoiser.guess_mode_step = 2
    assert torch.equal(denoiser(tiles, 1, embeddings, rows), ours)


@torch.no_grad()
def test_xl_receives_the_whole_size_and_the_corner_of_the_tile():
    """SDXL's six numbers: original size, corner of the crop, target size."""
    unet, controlnet = make_pair("sdxl")
    tiles, condition = torch.randn(2, 4, 8, 8), torch.rand(2, 20, 32, 32)
    text = Conditioning(torch.randn(3, 7, TEXT), torch.randn(3, POOLED))
    rows, corners = torch.tensor([0, 0, 1, 2]), [(16, 0), (32, 48)]
    time_ids = torch.tensor([[64, 96, *corner, 64, 96] for corner in corners * 2]).float()
    known = {
        "encoder_hidden_states": text.states[rows],
        "added_cond_kwargs": {"text_embeds": text.pooled[rows], "time_ids": time_ids},
    }
    twice, timestep = tiles.repeat(2, 1, 1, 1), torch.tensor(501)
    down, mid = controlnet(
        twice, timestep, **known, controlnet_cond=condition.repeat(2, 1, 1, 1), return_dict=False
    )
    stock = unet(
        twice,
        timestep,
        **known,
        down_block_additional_residuals=down,
        mid_block_additional_residual=mid,
    ).sample
    denoiser = Denoiser(unet, [Control(controlnet, 1.0)], torch.tensor([501]))
    denoiser.prime(text, (64, 96))
    ours = denoiser(tiles, 0, [denoiser.embed(0, condition)], rows, corners)
    assert (ours - stock).norm() / stock.norm() <= 5e-6


@torch.no_grad()
def test_several_controls_add_up():
    unet, controlnet = make_pair("sd15")
    tiles, condition = torch.randn(2, 4, 8, 8), torch.rand(2, 20, 32, 32)
    text, rows = Conditioning(torch.randn(2, 7, TEXT)), torch.tensor([0, 0, 1, 1])
    whole = Denoiser(unet, [Control(controlnet, 1.0)], torch.tensor([501]))
    whole.prime(text, (32, 32))
    embedding = whole.embed(0, condition)
    expected = whole(tiles, 0, [embedding], rows)
    halves = Denoiser(
        unet, [Control(controlnet, 0.25), Control(controlnet, 0.75)], torch.tensor([501])
    )
    halves.prime(text, (32, 32))
    assert torch.allclose(halves(tiles, 0, [embedding] * 2, rows), expected, atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_compiled_evaluation_is_equal():
    unet, controlnet = make_pair("sd15")
    tiles, embedding = torch.randn(2, 4, 8, 8), torch.randn(2, 32, 8, 8)
    denoiser = Denoiser(unet, [Control(controlnet, 1.0)], torch.tensor([501, 1]))
    results = []
    for _ in range(2):
        for seed in range(2):  # other texts of the same shape must not be the old ones
            text = torch.randn((2, 7, TEXT), generator=torch.Generator().manual_seed(seed))
            denoiser.prime(Conditioning(text), (32, 32))
            for step in range(2):
                results.append(denoiser(tiles, step, [embedding], torch.tensor([0, 0, 1, 1])))
        denoiser.compile()
    for plain, compiled in zip(results[:4], results[4:], strict=True):
        assert torch.allclose(plain, compiled, atol=1e-4)
    assert not torch.allclose(results[0], results[2], atol=1e-4)
