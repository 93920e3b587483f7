"""Averaged weights: the power function's definition, and widths put together afterwards."""

import numpy as np
import pytest
import torch

from finetune.averages import (
    ExponentialAverage,
    PowerAverages,
    choose_width,
    gamma_of,
    make_averages,
    reconstruct,
)
from finetune.settings import Training
from pipeline.errors import UserError

STEPS = 400


def wander(step: int) -> float:
    """The value of the only parameter after update `step`: a walk without any regularity."""
    return float(np.random.default_rng(step).normal() + np.sqrt(step))


def follow(averages, folder=None, every: int = 40) -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    for step in range(STEPS):
        torch.nn.init.constant_(model.weight, wander(step))
        averages.update(model, step)
        if folder is not None and (step + 1) % every == 0:
            averages.store(folder, step + 1)


def weighted_mean(gamma: float) -> float:
    """The integral of t^gamma over each update, by summation."""
    edges = np.arange(STEPS + 1, dtype=float) ** (gamma + 1)
    weights = np.diff(edges) / edges[-1]
    return float(sum(w * wander(step) for step, w in enumerate(weights)))


@pytest.mark.parametrize("width", [0.05, 0.1, 0.2])
def test_an_average_weighs_updates_by_the_power_function(width):
    averages = PowerAverages(torch.nn.Linear(1, 1, bias=False), (width,))
    follow(averages)
    assert float(averages.weights.weight) == pytest.approx(weighted_mean(gamma_of(width)), rel=1e-4)


def test_gamma_gives_the_width_it_is_solved_for():
    for width in (0.02, 0.05, 0.1, 0.25):
        gamma = gamma_of(width)
        spread = (gamma + 1) ** 0.5 / ((gamma + 2) * (gamma + 3) ** 0.5)  # equation 123
        assert spread == pytest.approx(width, rel=1e-9)
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.01)  # the paper's value
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.01)


@pytest.mark.parametrize("width", [0.05, 0.075, 0.15])
def test_a_width_put_together_afterwards_is_close_to_one_kept_from_the_start(width, tmp_path):
    averages = PowerAverages(torch.nn.Linear(1, 1, bias=False), (0.05, 0.1))
    follow(averages, tmp_path)
    afterwards = float(reconstruct(tmp_path, width)["weight"])
    assert afterwards == pytest.approx(weighted_mean(gamma_of(width)), abs=0.05)
    wrong = [float(averages.modules[f"average-{w:g}"].weight) for w in (0.05, 0.1)]
    if width == 0.15:
        assert all(abs(value - weighted_mean(gamma_of(width))) > 0.2 for value in wrong)


def test_the_width_with_the_least_loss_is_loaded(tmp_path):
    averages = PowerAverages(torch.nn.Linear(1, 1, bias=False), (0.05, 0.1))
    follow(averages, tmp_path)
    wanted = weighted_mean(gamma_of(0.15))
    model = torch.nn.Linear(1, 1, bias=False)
    losses = choose_width(
        tmp_path, model, (0.03, 0.05, 0.15), lambda m: abs(float(m.weight) - wanted)
    )
    assert list(losses) == ["0.03", "0.05", "0.15"]
    assert float(model.weight) == pytest.approx(wanted, abs=0.05)


def test_nothing_stored_is_one_line(tmp_path):
    with pytest.raises(UserError, match="holds no averaged weights"):
        reconstruct(tmp_path, 0.1)


def test_settings_choose_the_kind():
    model = torch.nn.Linear(1, 1)
    assert make_averages(Training(), model).weights is None
    assert isinstance(make_averages(Training(ema_decay=0.9), model), ExponentialAverage)
    power = make_averages(Training(ema_sigma_rel=(0.05, 0.1), ema_decay=0.9), model)
    assert isinstance(power, PowerAverages) and list(power.modules) == [
        "average-0.05",
        "average-0.1",
    ]
