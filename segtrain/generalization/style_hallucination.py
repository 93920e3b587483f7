"""Style hallucination of SHADE (Zhao et al., ECCV 2022, sections 4.1 and 4.2).

A style is the mean and standard deviation of each channel of an early feature map. Base styles are
chosen by farthest point sampling among those of training images; a Dirichlet-weighted sum of them
replaces the style of a second pass, whose predictions must agree with the first's. The paper goes
through the source for its base styles; here they come from the last images seen.
"""

import functools
import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from pipeline.errors import UserError


@dataclass(frozen=True)
class StyleHallucination:
    """Settings; the defaults are those of DGInStyle's training."""

    layer: str
    """dotted name of the backbone's module whose output, BxCxHxW or BxNxC, is restyled"""
    channels: int
    """C of that output"""
    num_styles: int = 64
    """base styles"""
    weight: float = 10.0
    """of the consistency between both predictions"""
    interval: int = 4000
    """updates between two choices of base styles"""
    pool: int = 1024
    """styles of the last images, from which base styles are chosen"""

    def __post_init__(self) -> None:
        for name in ("channels", "num_styles", "interval", "pool"):
            if type(value := getattr(self, name)) is not int or value < 1:
                raise UserError(f"style_hallucination.{name} {value!r}: must be 1 or more")
        if not 0 < self.weight < math.inf or self.num_styles > self.pool:
            raise UserError("style_hallucination: weight must be above 0, num_styles at most pool")


def farthest_points(points: torch.Tensor, count: int) -> torch.Tensor:
    """Return the numbers of `count` of NxD points: the first, then always the farthest from all."""
    chosen = torch.zeros(count, dtype=torch.long, device=points.device)
    distance = torch.full((len(points),), math.inf, device=points.device)
    for number in range(1, count):
        latest = (points - points[chosen[number - 1]]).square().sum(1)
        distance = torch.minimum(distance, latest)
        chosen[number] = distance.argmax()
    return chosen


def style_of(features: torch.Tensor) -> torch.Tensor:
    """Return Bx2xC: mean and standard deviation of each channel of BxCxHxW or BxNxC features."""
    values = features.flatten(2) if features.dim() == 4 else features.transpose(1, 2)
    variance = values.var(2, unbiased=False)
    return torch.stack([values.mean(2), (variance + 1e-6).sqrt()], 1)


def restyle(features: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
    """Return features with another style Bx2xC; their own is taken as constant."""
    place = (..., None, None) if features.dim() == 4 else (slice(None), None)
    mean, deviation = (part[place] for part in style_of(features).detach().unbind(1))
    new_mean, new_deviation = (part[place] for part in style.unbind(1))
    return (features - mean) / deviation * new_deviation + new_mean


def js_divergence(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the Jensen-Shannon divergence of logits BxKxHxW, a mean over pixels."""
    logs = torch.stack([one.log_softmax(1), other.log_softmax(1)])
    middle = torch.logsumexp(logs, 0) - math.log(2)
    return (logs.exp() * (logs - middle)).sum(2).mean()


class StyleMemory(torch.nn.Module):
    """Keeps the styles of the last images and the base styles; both are part of checkpoints."""

    def __init__(self, settings: StyleHallucination) -> None:
        super().__init__()
        self.settings = settings
        self.register_buffer("seen", torch.zeros(settings.pool, 2, settings.channels))
        self.register_buffer("base", torch.zeros(settings.num_styles, 2, settings.channels))
        self.register_buffer("num_seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("last_choice", torch.full((), -1, dtype=torch.long))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def remember(self, styles: torch.Tensor) -> bool:
        """Add the styles Bx2xC of a batch; True if there are base styles."""
        count, size = int(self.num_seen), len(self.seen)
        for number, style in enumerate(styles.float(), start=count):
            self.seen[number % size] = style
        self.num_seen += len(styles)
        return int(self.last_choice) >= 0

    @torch.no_grad()
    def after_update(self) -> None:
        """Count an update of the weights, and choose base styles if they are due.

        Nothing else changes base styles, so all micro-batches of an update have the same ones. All
        processes have those of the first: DistributedDataParallel sends them with its buffers at
        the beginning of each update.
        """
        self.updates += 1
        last = int(self.last_choice)
        due = last < 0 or int(self.updates) - last >= self.settings.interval
        filled = min(int(self.num_seen), len(self.seen))
        if due and filled >= len(self.base):
            known = self.seen[:filled]
            self.base.copy_(known[farthest_points(known.flatten(1), len(self.base))])
            self.last_choice.copy_(self.updates)

    def draw(self, count: int) -> torch.Tensor:
        """Return `count` new styles Bx2xC from torch's global stream of random numbers."""
        concentration = torch.full((len(self.base),), 1 / len(self.base), dtype=torch.float64)
        weights = torch.distributions.Dirichlet(concentration).sample((count,))
        return torch.einsum("bn,ntc->btc", weights.to(self.base), self.base)

    @contextmanager
    def observed(self, backbone: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
        """Collect the styles Bx2xC of all passes inside the block."""
        styles: list[torch.Tensor] = []

        def look(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> None:
            styles.append(style_of(output.detach()))

        with _hooked(backbone, self.settings.layer, look):
            yield styles

    @contextmanager
    def hallucinated(self, backbone: torch.nn.Module) -> Iterator[None]:
        """Give each image of every pass inside the block a new style."""

        def change(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
            return restyle(output, self.draw(len(output)).to(output))

        with _hooked(backbone, self.settings.layer, change):
            yield


def follow_updates(memory: StyleMemory, network: torch.nn.Module) -> None:
    """Have `memory` count each step of an optimizer of `network`, whatever loop makes it.

    mmengine's Runner tells a network of no update, and in several processes its wrapper leaves out
    the network's own `train_step`. A network without trained weights counts nothing.
    """
    _followed()[network] = memory


@functools.cache
def _followed() -> weakref.WeakKeyDictionary[torch.nn.Module, StyleMemory]:
    """Return the memories by network; the first call has torch tell of all optimizers' steps."""
    memories: weakref.WeakKeyDictionary[torch.nn.Module, StyleMemory] = weakref.WeakKeyDictionary()

    def count(optimizer: torch.optim.Optimizer, *_: object) -> None:
        for network, memory in list(memories.items()):
            trained = next((p for p in network.parameters() if p.requires_grad), None)
            groups = optimizer.param_groups if trained is not None else []
            if any(p is trained for group in groups for p in group["params"]):
                memory.after_update()

    register_optimizer_step_post_hook(count)  # never removed: torch may be calling its hooks
    return memories


@contextmanager
def _hooked(backbone: torch.nn.Module, layer: str, hook: object) -> Iterator[None]:
    try:
        module = backbone.get_submodule(layer)
    except AttributeError as error:
        raise UserError(f"style_hallucination.layer {layer!r}: {error}") from None
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
