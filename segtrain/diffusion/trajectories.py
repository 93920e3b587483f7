"""The noise levels at which a diffusion backbone reads an image, and the way between them.

Three ways: the clean latent (VPD), the latent under Gaussian noise at several independent levels
(ODISE, DIFT), and DDIM inversion, which climbs from level to level along the model's own estimate
of the noise (DIFF). A trajectory gives a first `Visit`, and from the U-Net's output there the next
one. Where several prompts have a part of the image each (paths), it takes their masks PxBx1xhxw.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch.nn import functional

from pipeline.errors import UserError
from pipeline.seeding import seed_of
from pipeline.setting_checks import require_seed

DIFF_37 = (
    *range(1, 24), 26, 30, 34, 40, 45, 52, 60, 69, 80, 91, 105, 121, 139, 160,
)  # fmt: skip
"""Targets of the 37-step preset of DIFF (Ji et al., ICASSP 2025); the last one is never visited."""
DIFF_37_SAVED = (91, 52, 30, 22, 18, 14, 11, 7, 3)
DIFF_5 = (1, 20, 40, 60, 80)
DIFF_5_SAVED = (60, 40, 20, 1, 0)


@dataclass(frozen=True)
class Visit:
    """One evaluation of the U-Net.

    `latents`: (S*B)xCxhxw, level by level; `timesteps`: S*B; `kept`: for each of the S levels its
    index among the kept ones, None if its features are not wanted; `is_last`: nothing but the
    features is needed; `number`: how many visits came before.
    """

    latents: torch.Tensor
    timesteps: torch.Tensor
    kept: tuple[int | None, ...]
    is_last: bool
    number: int = 0


class Schedule:
    """Noise levels and meaning of the output of a base model, from its scheduler's config."""

    def __init__(self, scheduler: Any) -> None:
        self.alphas = scheduler.alphas_cumprod.double()
        self.prediction_type = str(scheduler.config.prediction_type)
        if self.prediction_type not in ("epsilon", "v_prediction", "sample"):
            raise UserError(
                f"prediction_type {self.prediction_type}: expected epsilon, v_prediction or sample"
            )

    def alpha(self, timestep: int) -> float:
        """Return the share of signal variance at a timestep (Ho et al., eq. 4)."""
        return float(self.alphas[timestep])

    def split(
        self, output: torch.Tensor, latents: torch.Tensor, timestep: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (clean latent, noise) that a model output stands for.

        x_t = sqrt(a) x_0 + sqrt(1 - a) e; v = sqrt(a) e - sqrt(1 - a) x_0 (Salimans and Ho, 2022).
        """
        alpha = self.alpha(timestep)
        signal, noise = alpha**0.5, (1 - alpha) ** 0.5
        if self.prediction_type == "v_prediction":
            return signal * latents - noise * output, signal * output + noise * latents
        if self.prediction_type == "sample":
            return output, (latents - signal * output) / max(noise, 1e-8)
        return (latents - noise * output) / max(signal, 1e-8), output

    def noised(self, latents: torch.Tensor, noise: torch.Tensor, timestep: int) -> torch.Tensor:
        """Return the latents at the noise level of `timestep`."""
        alpha = self.alpha(timestep)
        return alpha**0.5 * latents + (1 - alpha) ** 0.5 * noise


class Trajectory(Protocol):
    """A way through noise levels."""

    @property
    def levels(self) -> tuple[int, ...]:
        """The kept timesteps, in the order of the features."""

    def start(self, latents: torch.Tensor, schedule: Schedule) -> Visit:
        """Return the first visit for clean latents BxCxhxw."""

    def follow(
        self,
        visit: Visit,
        output: torch.Tensor,
        schedule: Schedule,
        masks: torch.Tensor | None = None,
    ) -> Visit | None:
        """Return the visit after `visit`, where the U-Net gave `output`; None after the last."""


class OneVisit:
    """Part of the trajectories that evaluate the U-Net once."""

    def follow(
        self,
        visit: Visit,
        output: torch.Tensor,
        schedule: Schedule,
        masks: torch.Tensor | None = None,
    ) -> Visit | None:
        """Return None: there is no further visit."""
        return None


@dataclass(frozen=True)
class Clean(OneVisit):
    """The latent itself; the U-Net receives `timestep` as its noise level. Deterministic."""

    timestep: int = 1

    @property
    def levels(self) -> tuple[int, ...]:
        """The one timestep."""
        return (self.timestep,)

    def start(self, latents: torch.Tensor, schedule: Schedule) -> Visit:
        """Return the visit of the clean latents."""
        times = torch.full((len(latents),), self.timestep, device=latents.device)
        return Visit(latents, times, (0,), is_last=True)


@dataclass(frozen=True)
class Noised(OneVisit):
    """Independent noise levels in one batch; all images and levels share the noise of `seed`."""

    timesteps: tuple[int, ...] = (100,)
    seed: int = 42

    def __post_init__(self) -> None:
        require_timesteps("timesteps", self.timesteps)
        require_seed(self.seed, "seed")

    @property
    def levels(self) -> tuple[int, ...]:
        """All timesteps."""
        return self.timesteps

    def start(self, latents: torch.Tensor, schedule: Schedule) -> Visit:
        """Return the visit of all levels at once."""
        noise = noise_like(latents, self.seed)
        batch = [schedule.noised(latents, noise, timestep) for timestep in self.timesteps]
        times = torch.tensor(self.timesteps, device=latents.device).repeat_interleave(len(latents))
        return Visit(torch.cat(batch), times, tuple(range(len(batch))), is_last=True)


@dataclass(frozen=True)
class Inversion:
    """DDIM inversion (Song et al., ICLR 2021, eq. 12, upwards) from t = 0 over rising `targets`.

    The U-Net is evaluated at each target but the last; the trajectory ends after the last level of
    `saved`, unless `to_the_end`. `eta` adds fresh noise of `seed` to the steps that start strictly
    inside `eta_range`. As in DIFF each path takes its own step, with noise of its own, and the
    steps are averaged by the masks; where paths overlap, the mean has less noise than its level.
    """

    targets: tuple[int, ...]
    saved: tuple[int, ...]
    eta: float = 0.0
    eta_range: tuple[int, int] = (10, 250)
    seed: int = 42
    to_the_end: bool = False

    def __post_init__(self) -> None:
        require_timesteps("targets", self.targets)
        require_timesteps("saved", self.saved)
        require_seed(self.seed, "seed")
        if not isinstance(self.eta, int | float) or not 0 <= self.eta <= 1:
            raise UserError(f"eta {self.eta!r}: must be a number in 0..1")
        bounds = self.eta_range
        if not isinstance(bounds, tuple) or len(bounds) != 2 or not bounds[0] <= bounds[1]:
            raise UserError(f"eta_range {bounds!r}: must be two timesteps, the lower one first")
        visited = (0, *self.targets[:-1])
        if list(self.targets) != sorted(self.targets):
            raise UserError(f"targets {self.targets}: must rise")
        if wrong := [level for level in self.saved if level not in visited]:
            raise UserError(f"saved {wrong}: never visited; visited are {visited}")

    @property
    def levels(self) -> tuple[int, ...]:
        """The timesteps of `saved`."""
        return self.saved

    @property
    def visited(self) -> tuple[int, ...]:
        """The timesteps at which the U-Net is evaluated."""
        reachable = (0, *self.targets[:-1])
        return reachable if self.to_the_end else reachable[: reachable.index(max(self.saved)) + 1]

    def _visit(self, latents: torch.Tensor, number: int) -> Visit:
        now = self.visited[number]
        kept = self.saved.index(now) if now in self.saved else None
        times = torch.full((len(latents),), now, device=latents.device)
        return Visit(latents, times, (kept,), number == len(self.visited) - 1, number)

    def start(self, latents: torch.Tensor, schedule: Schedule) -> Visit:
        """Return the visit of the clean latents, at t = 0."""
        return self._visit(latents, 0)

    def follow(
        self,
        visit: Visit,
        output: torch.Tensor,
        schedule: Schedule,
        masks: torch.Tensor | None = None,
    ) -> Visit | None:
        """Return the visit one step up, None after the last."""
        if visit.is_last:
            return None
        now, target = self.visited[visit.number], self.targets[visit.number]
        clean, noise = schedule.split(output, visit.latents, now)
        before, after = schedule.alpha(now), schedule.alpha(target)
        fresh = self._fresh_variance(now, before, after)
        latents = after**0.5 * clean + max(1 - after - fresh, 1e-10) ** 0.5 * noise
        if fresh:
            latents = latents + fresh**0.5 * self._noise(latents, masks, target)
        return self._visit(latents, visit.number + 1)

    def _fresh_variance(self, now: int, before: float, after: float) -> float:
        """Return the variance that fresh noise has in a step; eq. 16, the levels exchanged.

        `before` and `after` are the shares of signal at the level of `now` and at the next.
        """
        if not self.eta_range[0] < now < self.eta_range[1]:
            return 0.0
        fresh = self.eta**2 * (1 - after / before) * (1 - after) / max(1 - before, 1e-12)
        return min(fresh, 1 - after)

    def _noise(self, like: torch.Tensor, masks: torch.Tensor | None, target: int) -> torch.Tensor:
        """Return the noise of a step, of several paths the mean by their masks."""
        first = noise_like(like, self.seed + target)
        if masks is None:
            return first
        others = [
            noise_like(like, seed_of(self.seed, "path", path, target))
            for path in range(1, len(masks))
        ]
        return masked_mean(torch.stack([first, *others]), masks)


TRAJECTORIES: dict[str, Callable[..., Trajectory]] = {
    "clean": Clean,
    "noised": Noised,
    "inversion": Inversion,
    "diff37": partial(Inversion, targets=DIFF_37, saved=DIFF_37_SAVED),
    "diff5": partial(Inversion, targets=DIFF_5, saved=DIFF_5_SAVED),
}
"""By the names that recipes use."""


def require_timesteps(name: str, values: Any) -> None:
    """Raise `UserError` unless `values` are distinct timesteps."""
    listed = isinstance(values, tuple) and all(isinstance(v, int) and v >= 0 for v in values)
    if not listed or not values or len(set(values)) != len(values):
        raise UserError(f"{name} {values}: give a list of distinct timesteps, whole numbers from 0")


def noise_like(like: torch.Tensor, seed: int) -> torch.Tensor:
    """Return noise 1xCxhxw of a seed, the same for every image of a batch and on any device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((1, *like.shape[1:]), generator=generator).to(like)


def masked_mean(values: torch.Tensor, masks: torch.Tensor | None) -> torch.Tensor:
    """Return the mean of PxBxCxhxw over paths, weighted by masks PxBx1xHxW at any size."""
    if masks is None:
        return values[0]
    size = values.shape[-2:]
    weights = functional.adaptive_avg_pool2d(masks.flatten(0, 1), size).unflatten(
        0, masks.shape[:2]
    )
    return (values * weights).sum(0) / weights.sum(0).clamp_min(1e-6)
