"""The effect of an image on the development target: by finite differences, and its summary."""

from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import fidelity_gain
from pipeline.dataset import open_dataset
from pipeline.errors import UserError
from segtrain import recipes
from segtrain.segmenter import Segmenter

RECIPE = Path(__file__).resolve().parents[2] / "configs" / "segtrain" / "segformer_pocket.py"
SMALL = (
    "model.backbone.embed_dims=8", "model.backbone.num_layers=[1,1,1,1]",
    "model.backbone.num_heads=[1,1,1,1]", "model.decode_head.in_channels=[8,8,8,8]",
    "model.decode_head.channels=8",
)  # fmt: skip


def loss_on(segmenter: Segmenter, samples) -> float:
    """Return the mean cross entropy of the predicted shares; void is a pixel without loss."""
    from pipeline.dataset import read_pair

    losses = []
    for sample in samples:
        image, label = read_pair(sample)
        (costs,) = segmenter.costs([image])
        known = label < 19
        losses.append((np.take_along_axis(costs, label[None] * known, 0)[0] * known).mean())
    return float(np.mean(losses))


def test_an_update_on_an_image_changes_the_target_loss_by_its_effect(tiny_dataset) -> None:
    torch.manual_seed(0)
    recipe = recipes.load_recipe(RECIPE, SMALL)
    segmenter = Segmenter(recipes.build_model(recipe), recipe)
    data = open_dataset(tiny_dataset(n=4), labelled=True)
    images, target = data[:2], data[2:]
    found = fidelity_gain.effects(segmenter, images, target)
    wanted = sum(fidelity_gain.gradient(segmenter, sample) for sample in target) / len(target)
    weights = [w for w in segmenter.model.parameters() if w.requires_grad]
    for sample, effect in zip(images, found, strict=True):
        step = fidelity_gain.gradient(segmenter, sample)
        rate = 1e-2 / float(step.norm())
        moved = []
        for sign in (1, -1):
            place = 0
            for weight in weights:
                part = step[place : place + weight.numel()].view_as(weight)
                place += weight.numel()
                weight.data += sign * rate * part
            moved.append(loss_on(segmenter, target))
            place = 0
            for weight in weights:
                part = step[place : place + weight.numel()].view_as(weight)
                place += weight.numel()
                weight.data -= sign * rate * part
        slope = (moved[0] - moved[1]) / (2 * rate)
        assert slope == pytest.approx(effect * float(wanted @ wanted), rel=0.05)


def test_summary_of_a_known_relation() -> None:
    rng = np.random.default_rng(0)
    fidelity = rng.permutation(np.linspace(0.5, 1.2, 40))
    maps = [f"map{number}" for number in range(40)]
    found = fidelity_gain.summarise(fidelity, fidelity - 0.7, ["fog", "night"] * 20, maps)
    assert set(found["correlations"]) == {"all", "fog", "night"}
    assert all(c["spearman"] == pytest.approx(1) for c in found["correlations"].values())
    lowest, *_, highest = found["quarters"]
    assert lowest["harmful"] == 1 and highest["harmful"] == 0
    assert lowest["interval"][0] < lowest["effect"] < lowest["interval"][1] < highest["effect"]
    assert "| highest |" in fidelity_gain.markdown_of(found)


def test_intervals_count_label_maps_and_not_images() -> None:
    rng = np.random.default_rng(0)
    maps, values = np.arange(20).repeat(16), rng.standard_normal(20).repeat(16)

    def mean(drawn: np.ndarray) -> float:
        return float(values[drawn].mean())

    low, high = fidelity_gain.interval(mean, maps)
    expected = 2 * 1.96 * values.std() / np.sqrt(20)  # the normal interval of 20 numbers
    assert high - low == pytest.approx(expected, rel=0.1)
    wider_low, wider_high = fidelity_gain.interval(mean, maps, 0.01)
    assert wider_low < low and high < wider_high
    assert fidelity_gain.interval(mean, np.zeros(320)) is None


def test_a_set_without_scores_is_named(tiny_dataset, tmp_path) -> None:
    data = open_dataset(tiny_dataset(n=2), labelled=True)
    with pytest.raises(UserError, match="2 samples have no scores; run generation/score.py"):
        fidelity_gain.fidelities(tmp_path, data)
