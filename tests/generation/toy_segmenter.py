"""A segmentation network for tests that needs no weights: it knows classes by their colours."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.labels import PALETTE


class ToySegmenter:
    """Gives a class the cost -log softmax of the squared distance from its palette colour."""

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, device: Any = "cpu") -> "ToySegmenter":
        return cls()

    def costs(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        colors = PALETTE[:19].astype(np.float64)
        found = []
        for image in images:
            logits = -np.square(image[None] - colors[:, None, None]).sum(-1) / 2000
            logits -= logits.max(0)
            found.append((np.log(np.exp(logits).sum(0)) - logits).astype(np.float32))
        return found
