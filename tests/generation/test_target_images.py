"""Images that are made from the images of a target are test data, too."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from generation import run, tar_output
from generation.inputs import read_inputs
from generation.settings import Config
from pipeline.errors import UserError
from pipeline.origins import kept_by_copies, refuse_test_data

CHANGES: dict[str, dict[str, Any]] = {
    "colour transfer": {"color_transfer": "source"},
    "image to image": {"strength": 0.5},
}
KEPT = {"role": "target", "classes": [("road", (0,))]}  # crops have no test sizes


@pytest.fixture
def target(tiny_dataset, tmp_path: Path) -> Path:
    """A target with test sizes and one class."""
    folder = tiny_dataset(1, 32, 64, folder=tmp_path / "target")
    state = {"role": "target", "protocol": {"eval_low_px": [16, 32]}, "classes": [["road", [0]]]}
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, **state}))
    return folder


def stated(config: Config) -> list[dict[str, Any]]:
    """Return what a folder and a set of tar shards say of their origin."""
    inputs = read_inputs(config)
    folder = run.open_output(config, inputs)
    tar_set = tar_output.open_tar_set(
        replace(config, output=Path(f"memory:/{config.output}")), inputs
    )
    return [{k: v for k, v in x.provenance.items() if k in (*KEPT, "protocol")}
            for x in (folder, tar_set)]  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_folders_and_tar_shards_keep_the_role(
    tiny_config: Config, target: Path, tmp_path: Path, name: str
) -> None:
    config = replace(tiny_config, label_maps=str(target), output=tmp_path / "out")
    assert stated(replace(config, **CHANGES[name])) == [KEPT, KEPT]
    assert stated(config) == [{}, {}]  # of the label maps alone


def test_a_set_of_a_targets_images_is_no_training_set(
    flags: list[str], target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*flags, "--label-maps", target, "--color-transfer", "source", "--n", 1]
    monkeypatch.setattr(
        sys, "argv", ["run.py", *map(str, words), "--output", str(tmp_path / "out")]
    )
    assert not run.main()
    with pytest.raises(UserError, match="out: is a target that networks are scored on"):
        refuse_test_data(tmp_path / "out")
    assert kept_by_copies(tmp_path / "out") == kept_by_copies(target, whole=False)
