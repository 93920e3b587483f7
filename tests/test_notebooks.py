"""The notebooks run from the first cell to the last, as they are committed."""

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "docs" / "notebooks").glob("*.ipynb"))


def code_cells(path: Path) -> list[str]:
    cells = json.loads(path.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_there_is_one() -> None:
    assert [path.name for path in NOTEBOOKS] == ["street_pipeline.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert path.stat().st_size < 300_000
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for number, source in enumerate(code_cells(path)):
        exec(compile(source, f"{path.name}, code cell {number}", "exec"), names)
    if path.stem == "street_pipeline":
        brightness = [sum(image.convert("L").histogram()[128:]) for image in names["images"]]
        assert brightness[3] < min(brightness[:3])  # the last one is at night
        assert names["output"].images[0].size == (256, 128)
    assert not list(tmp_path.iterdir())
