"""The backbone training: targets by a slow oracle, masks, and a run that segtrain reads."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Dinov2Model

from finetune import backbone, loop
from finetune.tasks.backbone import block_mask, patch_targets
from pipeline.errors import UserError
from segtrain import pretrained

RECIPES = Path(__file__).resolve().parents[2] / "configs" / "segtrain"
TINY = (
    "--patch-px", "4", "--width", "8", "--layers", "4", "--heads", "2", "--grid", "4",
    "--crop.size-px", "16", "24", "--crop.scales", "1.0", "--training.batch-size", "2",
    "--training.log-interval", "1",
)  # fmt: skip


def slow_histogram(gray: np.ndarray) -> np.ndarray:
    """Return the orientation histograms of the four quarters of a square patch, pixel by pixel."""
    side = len(gray) - 2
    found = np.zeros((9, 2, 2))
    for row in range(side):
        for column in range(side):
            across = gray[row + 1, column + 2] - gray[row + 1, column]
            down = gray[row + 2, column + 1] - gray[row, column + 1]
            place = math.degrees(math.atan2(down, across)) % 180 / 20
            low = math.floor(place) % 9
            for bin_number, share in ((low, 1 - place % 1), ((low + 1) % 9, place % 1)):
                quarter = row // (side // 2), column // (side // 2)
                found[bin_number, *quarter] += share * math.hypot(across, down)
    return found / (side // 2) ** 2


def test_targets_are_orientation_histograms() -> None:
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.uniform(-1, 1, (1, 3, 16, 16)))
    edges = patch_targets(images, 8)
    gray = np.einsum("chw,c->hw", images[0].numpy(), (0.299, 0.587, 0.114))
    padded = np.pad(gray, 1, mode="edge")
    for number, (top, left) in enumerate([(0, 0), (0, 8), (8, 0), (8, 8)]):
        wanted = slow_histogram(padded[top : top + 10, left : left + 10]).ravel()
        wanted /= np.linalg.norm(wanted) + 0.05
        np.testing.assert_allclose(edges[0, number].numpy(), wanted, atol=1e-9)


def test_edges_do_not_depend_on_light_and_flat_patches_have_none() -> None:
    rng = np.random.default_rng(1)
    images = torch.from_numpy(rng.uniform(-1, 1, (1, 3, 8, 8)))
    bright, dark = (patch_targets(images * light, 8) for light in (1.0, 0.8))
    assert torch.allclose(bright, dark, atol=0.03)
    assert not patch_targets(torch.full((1, 3, 8, 8), 0.3), 8).any()


def test_masks_are_whole_blocks_of_the_asked_share() -> None:
    mask = block_mask(3, (4, 6), 2, 0.5, torch.Generator().manual_seed(0)).view(3, 4, 6)
    assert (mask.sum((1, 2)) == 12).all() and not torch.equal(mask[0], mask[1])
    blocks = mask.view(3, 2, 2, 3, 2).transpose(2, 3).flatten(3)
    assert torch.equal(blocks.all(-1), blocks.any(-1))


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["backbone.py", *TINY, *map(str, words)])
    assert not backbone.main()


def test_a_run_continues_exactly_and_segtrain_reads_it(tiny_dataset, tmp_path, monkeypatch) -> None:
    data = ("--data", tiny_dataset(n=2))
    run(monkeypatch, *data, "--output", tmp_path / "a", "--training.steps", 3)
    steps = ("--training.steps", 3, "--training.checkpoint-interval", 1)
    with monkeypatch.context() as patch:
        kept, calls = loop.update_weights, []

        def interrupt(*arguments: object) -> None:
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            kept(*arguments)

        patch.setattr(loop, "update_weights", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(patch, *data, "--output", tmp_path / "b", *steps)
    run(monkeypatch, *data, "--output", tmp_path / "b", *steps)
    whole, continued = (load_file(tmp_path / f / "backbone/model.safetensors") for f in "ab")
    assert whole.keys() == continued.keys()
    assert all(torch.equal(whole[name], continued[name]) for name in whole)

    recipe = tmp_path / "recipe.py"
    sizes = "hidden_size=8, num_hidden_layers=4, num_attention_heads=2, patch_size=4, image_size=16"
    recipe.write_text(
        f"_base_ = [{str(RECIPES / 'dinov2_pocket.py')!r}]\n"
        f"model = dict(backbone=dict(architecture=dict({sizes}), out_layers=(0, 1, 2, 3)))\n"
    )
    found = pretrained.convert(
        pretrained.Config(recipe=recipe, weights=str(tmp_path / "a/backbone"))
    )
    wanted = Dinov2Model.from_pretrained(tmp_path / "a/backbone").state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--width", "9"), "--width 9: must be a multiple of 2"),
        (("--patch-px", "5"), "--patch-px 5: must be a multiple of 2"),
        (
            ("--crop.size-px", "20", "24"),
            "--crop.size-px 20 24: .* multiples of 8 for whole masked",
        ),
        (("--mask-share", "1"), "--mask-share 1"),
        (("--layers", "0"), "--layers 0"),
    ],
)
def test_settings_that_cannot_work_are_one_line(
    words, message, tiny_dataset, tmp_path, monkeypatch
) -> None:
    data = ("--data", tiny_dataset(n=1), "--output", tmp_path / "run")
    with pytest.raises(UserError, match=message):
        run(monkeypatch, *data, *words)
    assert not (tmp_path / "run").exists()
