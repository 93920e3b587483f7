"""The size grid: what the networks themselves take is what every program asks for."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from finetune import prior, unet, vae
from generation import run as generate
from pipeline import models
from pipeline.errors import UserError
from pipeline.size_grid import (
    SizeGrid,
    read_size_grid,
    require_multiple,
    size_grid_of,
    vae_scale_factor,
)


def test_grid_is_that_of_the_networks(tiny_base: Path) -> None:
    """The image of `size_multiple` pixels ends as one pixel at the U-Net's deepest level."""
    autoencoder = models.load_component(str(tiny_base), "vae")
    network = models.load_component(str(tiny_base), "unet")
    grid = size_grid_of(autoencoder, network)
    assert grid == read_size_grid(tiny_base / "vae", tiny_base / "unet") == SizeGrid(4, 8)
    assert vae_scale_factor(autoencoder) == grid.vae_scale_factor
    deepest: list[torch.Size] = []
    network.mid_block.register_forward_hook(lambda _m, _i, output: deepest.append(output.shape))
    side = grid.size_multiple
    with torch.no_grad():
        latents = autoencoder.encode(torch.zeros(1, 3, side, 3 * side)).latent_dist.mean
        width = network.config.cross_attention_dim
        network(latents, 1, torch.zeros(1, 2, width))
    factor = grid.vae_scale_factor
    assert latents.shape[-2:] == (side // factor, 3 * side // factor)
    assert deepest[0][-2:] == (1, 3)


@pytest.mark.parametrize(
    ("size_px", "padding"), [((8, 16), (0, 0)), ((9, 15), (7, 1)), ((1, 24), (7, 0))]
)
def test_padding_reaches_the_next_multiples(
    size_px: tuple[int, int], padding: tuple[int, int]
) -> None:
    grid = SizeGrid(vae_scale_factor=4, size_multiple=8)
    assert grid.padding(size_px) == padding
    assert replace(grid, size_multiple=1).padding(size_px) == (0, 0)


def test_other_sizes_are_refused_in_one_line() -> None:
    require_multiple("--size-px", (16, 8), 8, "for --base x")
    message = "--size-px 16 12: height and width must be multiples of 8 for --base x"
    with pytest.raises(UserError, match=message):
        require_multiple("--size-px", (16, 12), 8, "for --base x")


PROGRAMS = {
    "unet": (unet, ["--base", "BASE", "--data", "DATA", "--crop.size-px", "32", "60"]),
    "prior": (
        prior,
        ["--vae", "BASE/vae", "--data", "DATA", "--channels", "16", "32",
         "--heads", "2", "--crop.size-px", "32", "60"],
    ),
    "vae": (vae, ["--data", "DATA", "--crop.size-px", "32", "60"]),
    "generate": (
        generate,
        ["--base", "BASE", "--controlnet", "CONTROL", "--label-maps", "DATA",
         "--tile-px", "32", "60"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_names_the_multiple(
    name: str,
    tiny_base: Path,
    tiny_controlnet: Path,
    tiny_dataset: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, given = PROGRAMS[name]
    named = {"DATA": str(tiny_dataset(n=1)), "CONTROL": str(tiny_controlnet)}
    words = [named.get(word, word.replace("BASE", str(tiny_base))) for word in given]
    monkeypatch.setattr("sys.argv", [name, *words, "--output", str(tmp_path / "out")])
    with pytest.raises(UserError, match="-px 32 60: height and width must be multiples of 8 for"):
        module.main()
    assert not (tmp_path / "out").exists()
