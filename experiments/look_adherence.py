"""Do generated pictures have the look their prompt names?

A small classifier learns the looks from rendered pictures, is checked on rendered pictures of
other scenes, and then names the looks of generated ones.

    python experiments/look_adherence.py --train DIR --heldout DIR \
        --generated DIR [DIR ...] --output adherence.json

The true look of a row is its `look`, of a generated row its `condition`. Used for measuring only.
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline import files
from pipeline.dataset import open_dataset, read_image
from pipeline.errors import guard

SIZE_PX = (64, 128)


def load(folder: str, names: list[str] | None) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Return (pictures Bx3xHxW in [-1, 1], look indices B, look names)."""
    samples = open_dataset(folder, labelled=False)
    looks = [str(s.row.get("look", s.row["condition"])) for s in samples]
    names = names or sorted(set(looks))
    kept = [(s, look) for s, look in zip(samples, looks, strict=True) if look in names]
    pictures = np.stack(
        [
            cv2.resize(read_image(s.image), SIZE_PX[::-1], interpolation=cv2.INTER_AREA)
            for s, _ in kept
        ]
    )
    tensor = torch.from_numpy(pictures).movedim(-1, 1).float() / 127.5 - 1
    return tensor, torch.tensor([names.index(look) for _, look in kept]), names


def classifier(num_looks: int) -> nn.Module:
    """Build a small convolutional network with global average pooling."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU()]

    layers = [*block(3, 16), *block(16, 32), *block(32, 48), *block(48, 64)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_looks))


def accuracy(model: nn.Module, pictures: torch.Tensor, looks: torch.Tensor, names: list[str]):
    """Return top-1 in percent, over all pictures and per look, and the confusions."""
    with torch.no_grad():
        guess = torch.cat([model(part) for part in pictures.split(64)]).argmax(1)
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
        "pictures": len(looks),
        "per_look": per_look,
        "mistakes": dict(sorted(mistakes.items(), key=lambda kv: -kv[1])[:8]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--train", required=True)
    parser.add_argument("--heldout", required=True)
    parser.add_argument("--generated", required=True, nargs="+")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--epochs", type=int, default=12)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    pictures, looks, names = load(arguments.train, None)
    model = classifier(len(names))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    steps = arguments.epochs * (len(looks) // 32)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in range(arguments.epochs):
        for batch in torch.randperm(len(looks))[: len(looks) // 32 * 32].split(32):
            inputs = pictures[batch]
            if torch.rand(()) < 0.5:
                inputs = inputs.flip(3)
            loss = nn.functional.cross_entropy(model(inputs), looks[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    rendered = accuracy(model, *load(arguments.heldout, names))
    result = {"looks": names, "rendered": rendered, "generated": {}}
    for folder in arguments.generated:
        measured = accuracy(model, *load(folder, names))
        measured["share_of_rendered"] = round(100 * measured["top1"] / rendered["top1"], 1)
        result["generated"][folder] = measured
        print(f"{folder}: top-1 {measured['top1']} % (rendered {rendered['top1']} %)", flush=True)
    files.write_json(arguments.output, result)


if __name__ == "__main__":
    guard(main)
