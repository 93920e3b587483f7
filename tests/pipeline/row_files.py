"""Dataset folders as users write them, for tests of rows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


def write_set(folder: Path, n: int = 2) -> None:
    """A dataset folder as a user may write it, without hashes."""
    rows = []
    for index in range(n):
        row = {"id": f"{index:08d}"}
        for kind, array in (("image", np.full((32, 64, 3), 9)), ("label", np.zeros((32, 64)))):
            row[f"{kind}_file_name"] = f"{kind}s/{index:08d}.png"
            (folder / f"{kind}s").mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.astype(np.uint8)).save(folder / row[f"{kind}_file_name"])
        rows.append(row)
    write_rows(folder, rows)


def write_rows(folder: Path, rows: list[Any]) -> None:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    (folder / "metadata.jsonl").write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound set beside the secrets of its reader: an image and a label outside of it."""
    write_set(tmp_path / "set")
    (tmp_path / "outside").mkdir()
    for name, array in (("image", np.full((32, 64, 3), 77)), ("label", np.full((32, 64), 2))):
        Image.fromarray(array.astype(np.uint8)).save(tmp_path / f"outside/{name}.png")
    return tmp_path / "set"
