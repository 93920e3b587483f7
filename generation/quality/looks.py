"""A small classifier of looks: does an image show the condition that its prompt names?

It learns from rendered or real images whose rows name the look, so it can only know names that
occur there. Used for measuring alone; nothing is trained on what it says.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from pipeline.dataset import Sample
from pipeline.images import read_image
from pipeline.latents import images_to_tensor

SIZE_PX = (64, 128)
BATCH = 32
EPOCHS = 12
MOST_MISTAKES = 8


def name_of(sample: Sample, attribute: str = "condition") -> str | None:
    """Return what a row says of an attribute; a rendered row's condition is its `look`."""
    value = sample.row.get(attribute)
    if attribute == "condition":
        value = sample.row.get("look", value)
    return None if value is None else str(value)


def shrink(image: np.ndarray) -> np.ndarray:
    """Return an image HxWx3 at the classifier's size, SIZE_PX."""
    return cv2.resize(image, SIZE_PX[::-1], interpolation=cv2.INTER_AREA)


def load(
    samples: Sequence[Sample], attribute: str = "condition", names: Sequence[str] | None = None
) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Return images Bx3xHxW in [-1, 1], indices B of their names, and the names.

    Samples without a name, or with one that is not in `names`, are left out.
    """
    said = [name_of(sample, attribute) for sample in samples]
    names = list(names or sorted({name for name in said if name is not None}))
    kept = [(sample, name) for sample, name in zip(samples, said, strict=True) if name in names]
    images = [shrink(read_image(sample.image)) for sample, _ in kept]
    tensor = images_to_tensor(images) if images else torch.zeros(0, 3, *SIZE_PX)
    return tensor, torch.tensor([names.index(str(name)) for _, name in kept]).long(), names


def build(num_looks: int) -> nn.Module:
    """Build a small convolutional network with global average pooling."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU()]

    layers = [*block(3, 16), *block(16, 32), *block(32, 48), *block(48, 64)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_looks))


def train(
    images: torch.Tensor, looks: torch.Tensor, num_looks: int, epochs: int = EPOCHS
) -> nn.Module:
    """Train a classifier on at least BATCH images Bx3xHxW; the same data give the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(num_looks)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
        steps = epochs * (len(looks) // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
        for _ in range(epochs):
            for batch in torch.randperm(len(looks))[: len(looks) // BATCH * BATCH].split(BATCH):
                inputs = images[batch]
                if torch.rand(()) < 0.5:
                    inputs = inputs.flip(3)
                loss = nn.functional.cross_entropy(model(inputs), looks[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return model.eval()


@torch.no_grad()
def probabilities(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the probability BxK of each look for images Bx3xHxW in [-1, 1]."""
    return torch.cat([model(part).softmax(1) for part in images.split(64)])


def accuracy(
    model: nn.Module, images: torch.Tensor, looks: torch.Tensor, names: Sequence[str]
) -> dict[str, Any]:
    """Return top-1 in percent, over all images and per look, and the confusions."""
    with torch.no_grad():
        guess = torch.cat([model(part) for part in images.split(64)]).argmax(1)
    hit = (guess == looks).float()
    per_look = {
        name: round(100 * float(hit[looks == i].mean()), 1)
        for i, name in enumerate(names)
        if (looks == i).any()
    }
    mistakes: dict[str, int] = {}
    for true, wrong in zip(looks[hit == 0].tolist(), guess[hit == 0].tolist(), strict=True):
        key = f"{names[true]} named {names[wrong]}"
        mistakes[key] = mistakes.get(key, 0) + 1
    return {
        "top1": round(100 * float(hit.mean()), 1),
        "images": len(looks),
        "per_look": per_look,
        "mistakes": dict(sorted(mistakes.items(), key=lambda kv: -kv[1])[:MOST_MISTAKES]),
    }
