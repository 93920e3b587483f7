"""A segmentation network for tests that likes some images: bright ones, or listed ones."""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROAD, SKY, TRAIN = 0, 10, 16


class PickySegmenter:
    """Sees sky above road in an image that it likes, and a train everywhere in any other.

    `taste.json` in its folder has the key `above`, the mean value of images that it likes, or
    `checksums`, those of their bytes.
    """

    def __init__(self, taste: dict[str, Any]) -> None:
        self.taste = taste

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, device: Any = "cpu") -> "PickySegmenter":
        return cls(json.loads((Path(folder) / "taste.json").read_text()))

    def likes(self, image: np.ndarray) -> bool:
        if "above" in self.taste:
            return bool(image.mean() > self.taste["above"])
        return zlib.crc32(image.tobytes()) in self.taste["checksums"]

    def costs(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        found = []
        for image in images:
            height, width = image.shape[:2]
            seen = np.full((height, width), TRAIN)
            if self.likes(image):
                seen[: height // 2], seen[height // 2 :] = SKY, ROAD
            costs = np.full((19, height, width), 6.0, np.float32)
            np.put_along_axis(costs, seen[None], 0.1, 0)
            found.append(costs)
        return found
