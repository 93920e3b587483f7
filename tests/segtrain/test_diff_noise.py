"""The noise of DIFF's inversion: from which level it is added, and one draw for each path.

The oracle is the update as published (Ji et al., ICASSP 2025), path by path in float64: it shares
no code with the product but the noise itself, which is recorded as it is sampled.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from pipeline.prompt_encoder import PromptEncoder
from segtrain.diffusion import trajectories
from segtrain.diffusion.extractor import load_extractor
from segtrain.diffusion.released_diff import ReleasedDiffExtractor
from segtrain.diffusion.trajectories import Inversion, Schedule

BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2  # Stable Diffusion's
SIGNAL = np.cumprod(1 - BETAS)
ETA = 1.0


@pytest.fixture
def noises_used(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Every draw of noise, in order."""
    found: list[np.ndarray] = []
    real = trajectories.noise_like

    def record(like: torch.Tensor, seed: int) -> torch.Tensor:
        found.append(real(like, seed).double().numpy())
        return real(like, seed)

    monkeypatch.setattr(trajectories, "noise_like", record)
    return found


def published_step(
    x: np.ndarray, noise: np.ndarray, now: int, target: int, fresh: np.ndarray | None
) -> np.ndarray:
    """The released update of one path: x0 from the estimate, then up to `target`."""
    a, b = SIGNAL[now], SIGNAL[target]
    eta = ETA if 10 < now < 250 else 0.0
    c1 = eta * np.sqrt((1 - b / a) * (1 - b) / (1 - a))
    c2 = np.sqrt(max(1 - b - c1**2, 1e-10))
    assert (fresh is None) == (eta == 0)
    clean = (x - np.sqrt(1 - a) * noise) / np.sqrt(a)
    return np.sqrt(b) * clean + c2 * noise + (0 if fresh is None else c1 * fresh)


def walk(
    inversion: Inversion,
    start: torch.Tensor,
    model: Callable[[torch.Tensor, int], Any],
    masks: torch.Tensor | None = None,
) -> list[tuple[int, np.ndarray]]:
    """The visited timesteps with their latents."""
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False
    )
    schedule, visits = Schedule(scheduler), []
    visit = inversion.start(start, schedule)
    while visit is not None:
        now = int(visit.timesteps[0])
        visits.append((now, visit.latents.double().numpy()))
        output = model(visit.latents, now)
        visit = None if output is None else inversion.follow(visit, output, schedule, masks)
    return visits


@pytest.mark.parametrize(
    ("targets", "noisy"),
    [((5, 10, 11, 12, 14, 16), (11, 12)), ((240, 249, 250, 255, 260), (240, 249))],
)
def test_noise_joins_the_steps_that_start_inside_the_range(
    targets: tuple[int, ...], noisy: tuple[int, ...], noises_used: list[np.ndarray]
) -> None:
    start = torch.randn(2, 4, 4, 4, dtype=torch.float64)
    visits = walk(Inversion(targets, (0,), eta=ETA, to_the_end=True), start, lambda x, _: x.tanh())
    assert [now for now, _ in visits] == [0, *targets[:-1]]
    assert len(noises_used) == len(noisy), "not from 10 or below, nor from 250 or above"
    noises = iter(noises_used)
    for (now, x), (target, following) in zip(visits, visits[1:], strict=False):
        fresh = next(noises) if now in noisy else None
        expected = published_step(x, np.tanh(x), now, target, fresh)
        np.testing.assert_allclose(following, expected, rtol=1e-5, atol=2e-5)


def test_each_path_steps_with_noise_of_its_own(noises_used: list[np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    masks = np.concatenate([np.ones((1, 2, 1, 4, 6)), rng.random((2, 2, 1, 4, 6)) < 0.5])
    weights = masks / masks.sum(0)
    estimates = {now: rng.standard_normal((3, 2, 4, 4, 6)) for now in (0, 30)}

    def model(latents: torch.Tensor, now: int) -> torch.Tensor | None:
        if now not in estimates:  # the last one, which the extractor leaves early
            return None
        return torch.from_numpy((weights * estimates[now]).sum(0))  # as the extractor merges them

    start = torch.from_numpy(rng.standard_normal((2, 4, 4, 6)))
    visits = walk(Inversion((30, 36, 44), (36,), eta=ETA), start, model, torch.from_numpy(masks))
    assert len(noises_used) == 3, "three paths, one step with noise before the last visit"
    assert not np.allclose(noises_used[0], noises_used[1]) and not np.allclose(
        noises_used[1], noises_used[2]
    )
    for (now, x), (target, following) in zip(visits, visits[1:], strict=False):
        paths = [
            published_step(x, estimates[now][k], now, target, noises_used[k] if now == 30 else None)
            for k in range(3)
        ]
        expected = (weights * np.stack(paths)).sum(0)
        np.testing.assert_allclose(following, expected, rtol=1e-5, atol=2e-5)


def test_the_conditional_branch_is_the_published_loop(family_base, noises_used) -> None:
    """The whole extractor of the released DIFF, against the U-Net called path by path."""
    base = str(family_base("sd21"))
    inversion = Inversion((30, 36, 44, 60), (44,), eta=ETA)
    extractor = load_extractor(
        base, taps=("up_blocks.1",), trajectory=inversion, kind=ReleasedDiffExtractor
    )
    prompts = PromptEncoder(base).encode(["", "a city street scene with car", "with train"])
    masks = torch.ones(3, 2, 1, 8, 8)
    masks[1, :, :, :5], masks[2, :, :, 3:, 2:] = 0, 0
    start = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    seen: list[torch.Tensor] = []
    hook = extractor.unet.register_forward_pre_hook(lambda _m, given: seen.append(given[0].clone()))
    images = torch.zeros(2, 3, 32, 32)
    list(extractor.features(images, prompts, latents=start, masks=masks))
    hook.remove()
    unet = diffusers.UNet2DConditionModel.from_pretrained(Path(base) / "unet").eval()
    x, noises = start.double().numpy(), iter(noises_used)
    weights = (masks / masks.sum(0)).double().numpy()
    assert len(seen) == 4
    for number, (now, target) in enumerate(((0, 30), (30, 36), (36, 44), (44, 60))):
        for rows in seen[number].unflatten(0, (4, 2)).double().numpy():  # negative, three paths
            np.testing.assert_allclose(rows, x, rtol=1e-3, atol=1e-4)
        latents = torch.from_numpy(x).float()
        with torch.no_grad():
            outputs = [
                unet(latents, now, text[None].expand(2, -1, -1)).sample.double().numpy()
                for text in prompts.states
            ]
        fresh = [next(noises) for _ in outputs] if 10 < now < 44 else [None] * 3
        guided = [outputs[0] + 5.0 * (output - outputs[0]) for output in outputs]
        paths = (
            [published_step(x, guided[k], now, target, fresh[k]) for k in range(3)]
            if now < 44
            else [x] * 3
        )
        x = (weights * np.stack(paths)).sum(0)
    assert next(noises, None) is None
