"""Averaged weights: an exponential average, or power-function averages whose width is chosen later.

A power-function average (Karras et al., CVPR 2024, section 3.1) weighs the parameters of update t
by t^gamma: its width is a share of the training so far, `sigma_rel`, not a number of updates. From
two averages that are stored at each checkpoint, an average of any other width can be computed after
the training (section 3.2). So the width is chosen by measurement after the training.
"""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from finetune.settings import Training
from pipeline import files
from pipeline.averages import ema_share, update_average
from pipeline.errors import UserError

FOLDER = "averages"
WIDTHS = (0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2)  # tried when a width is chosen


class Averages:
    """The averages kept beside the trained weights; this class keeps none."""

    modules: dict[str, torch.nn.Module]
    """What a checkpoint must hold, by name."""

    def __init__(self) -> None:
        self.modules = {}

    @property
    def weights(self) -> torch.nn.Module | None:
        """The averaged weights to preview and to save, None if there are none."""
        return next(iter(self.modules.values()), None)

    def update(self, model: torch.nn.Module, step: int) -> None:
        """Take in the weights of `model` after update `step`, counted from 0."""

    def store(self, folder: Path, done: int) -> None:
        """Store what the choice of a width needs after `done` updates; main process only."""


class ExponentialAverage(Averages):
    """One exponential moving average, whose decay is lower in the first updates."""

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.modules["ema"] = copy.deepcopy(model).requires_grad_(False)

    def update(self, model: torch.nn.Module, step: int) -> None:
        """Move the average towards `model`."""
        _update_module(self.modules["ema"], model, ema_share(self.decay, step))


class PowerAverages(Averages):
    """Power-function averages of several relative widths, stored at every checkpoint."""

    def __init__(self, model: torch.nn.Module, widths: Sequence[float]) -> None:
        super().__init__()
        self.widths = tuple(widths)
        for width in self.widths:
            self.modules[_name(width)] = copy.deepcopy(model).requires_grad_(False)

    def update(self, model: torch.nn.Module, step: int) -> None:
        """Move each average towards `model` by 1 - (1 - 1/t)^(gamma + 1) (equation 127)."""
        for width in self.widths:
            share = 1 - (1 - 1 / (step + 1)) ** (gamma_of(width) + 1)
            _update_module(self.modules[_name(width)], model, share)

    def store(self, folder: Path, done: int) -> None:
        """Write the averages as float16 below `folder`/averages."""
        for width in self.widths:
            state = self.modules[_name(width)].state_dict()
            half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
            path = folder / FOLDER / f"{_name(width)}-step-{done:08d}.safetensors"
            with files.replacing(path) as temporary:
                save_file({k: v.contiguous().cpu() for k, v in half.items()}, temporary)


def make_averages(settings: Training, model: torch.nn.Module) -> Averages:
    """Return the averages that the settings ask for."""
    if settings.ema_sigma_rel:
        return PowerAverages(model, settings.ema_sigma_rel)
    if settings.ema_decay:
        return ExponentialAverage(model, settings.ema_decay)
    return Averages()


@torch.no_grad()
def _update_module(average: torch.nn.Module, model: torch.nn.Module, share: float) -> None:
    """Move the averaged parameters by `share` of the way to the model's; copy its buffers."""
    update_average(average.parameters(), model.parameters(), share)
    for averaged, buffer in zip(average.buffers(), model.buffers(), strict=True):
        averaged.copy_(buffer)


def _name(width: float) -> str:
    return f"average-{width:g}"


def gamma_of(sigma_rel: float) -> float:
    """Return the exponent of the average of relative width `sigma_rel`, in (0, 0.28].

    The largest root of gamma^3 + 7 gamma^2 + (16 - t) gamma + (12 - t) with t = sigma_rel^-2
    (Karras et al., algorithm 2).
    """
    t = sigma_rel**-2
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


def _overlap(
    steps_a: np.ndarray, gamma_a: np.ndarray, steps_b: np.ndarray, gamma_b: np.ndarray
) -> np.ndarray:
    """Return the inner products of two lists of power-function profiles (algorithm 3)."""
    a, b = steps_a[:, None], steps_b[None, :]
    exponent = np.where(a < b, gamma_b[None, :], -gamma_a[:, None])
    numerator = (gamma_a[:, None] + 1) * (gamma_b[None, :] + 1) * (a / b) ** exponent
    return numerator / ((gamma_a[:, None] + gamma_b[None, :] + 1) * np.maximum(a, b))


def reconstruct(folder: Path, sigma_rel: float) -> dict[str, torch.Tensor]:
    """Return the state dict of the average of relative width `sigma_rel` at the last stored step.

    The stored profiles are combined so that their squared distance to the wanted one is least.
    Raises `UserError` if nothing is stored in `folder`/averages.
    """
    paths = sorted((folder / FOLDER).glob("average-*-step-*.safetensors"))
    if not paths:
        raise UserError(f"{folder / FOLDER}: holds no averaged weights; train with ema_sigma_rel")
    words = [path.stem.split("-") for path in paths]
    steps = np.array([float(word[3]) for word in words])
    gammas = np.array([gamma_of(float(word[1])) for word in words])
    wanted = np.array([gamma_of(sigma_rel)])
    matrix = _overlap(steps, gammas, steps, gammas)
    target = _overlap(steps, gammas, steps.max(keepdims=True), wanted)
    shares = np.linalg.lstsq(matrix, target, rcond=None)[0][:, 0]
    total: dict[str, torch.Tensor] = {}
    for path, share in zip(paths, shares, strict=True):
        for name, value in load_file(path).items():
            if not value.is_floating_point():
                total[name] = value
            elif name in total:
                total[name] += float(share) * value.double()
            else:
                total[name] = float(share) * value.double()
    return {k: v.float() if v.is_floating_point() else v for k, v in total.items()}


def choose_width(
    folder: Path,
    model: torch.nn.Module,
    widths: Sequence[float],
    loss: Callable[[torch.nn.Module], float],
) -> dict[str, float]:
    """Load the average of the width whose `loss` is least into `model`; return all losses."""
    losses = {}
    for width in widths:
        model.load_state_dict(reconstruct(folder, width))
        losses[f"{width:g}"] = loss(model)
    best = min(losses, key=losses.__getitem__)
    model.load_state_dict(reconstruct(folder, float(best)))
    return losses
