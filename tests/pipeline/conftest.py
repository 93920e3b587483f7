"""Tiny source trees in the layouts of public datasets."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

GTA_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33, 0, 34)


def write_gta(root: Path, n: int, height: int = 8, width: int = 12) -> Path:
    """Write `n` pairs as GTA does: RGB pictures and palette labels with ids 0..34."""
    for index in range(1, n + 1):
        rng = np.random.default_rng(index)
        label = Image.fromarray(rng.choice(GTA_IDS, (height, width)).astype(np.uint8), mode="P")
        label.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tobytes())
        picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for folder, image in (("images", picture), ("labels", label)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            image.save(root / folder / f"{index:05d}.png")
    return root


@pytest.fixture
def gta_tree(tmp_path: Path) -> Callable[..., Path]:
    """A factory of GTA trees below a folder that is itself called images."""
    return lambda n=6, **sizes: write_gta(tmp_path / "images" / "gta", n, **sizes)


@pytest.fixture(scope="session")
def real_samples(root: Path) -> Path:
    """A few real files that some checkouts have beside them."""
    folder = root.parent / "shared" / "data" / "real_samples"
    if not folder.is_dir():
        pytest.skip("no real samples beside this checkout")
    return folder
