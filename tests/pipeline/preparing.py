"""What tests of pipeline/prepare.py share."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import prepare


def run(monkeypatch: pytest.MonkeyPatch, root: Path, output: Path, *flags: str) -> int | None:
    """Run the program in this process on GTA."""
    base = ["--dataset", "gta", "--root", str(root), "--output", str(output), "--workers", "1"]
    monkeypatch.setattr(sys, "argv", ["prepare.py", *base, *flags])
    return prepare.main()


def content(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def write_pairs(root: Path, *arrays: np.ndarray, suffix: str = ".png") -> Path:
    """Write pairs of a black image and a label in the layout of GTA."""
    for number, array in enumerate(arrays, start=1):
        for folder, image in (
            ("images", Image.new("RGB", array.shape[::-1])),
            ("labels", Image.fromarray(array.astype(np.uint8))),
        ):
            (root / folder).mkdir(parents=True, exist_ok=True)
            image.save(root / folder / f"{number}{suffix}", format="PNG")
    return root
