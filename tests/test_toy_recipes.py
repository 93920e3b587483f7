"""Recipes of the experiments at toy size: their stages run in order, in this process.

One seed and one arm of each kind of stage. Sizes are values of the recipes; `SMALL` holds what is
not a value.
"""

import importlib
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from pipeline.reading import read_json
from pipeline.stages import FOLDER, load_recipe

TOY = {
    "source_images": 8, "collection_images": 4, "unlabelled_images": 4, "target_images": 2,
    "heldout_images": 2, "n": 4, "six_times": 8, "iterations": 6, "network_steps": 6,
    "backbone_steps": 2, "oracle_images": 4, "head_steps": 1, "head_crops": 4,
    "generated_images": 1,
}  # fmt: skip
SMALL: dict[str, tuple[str, ...]] = {
    "pipeline/pocket_city.py": ("--workers", "1"),
    "generation/run.py": ("--steps", "1"),
    "finetune/backbone.py": ("--training.batch-size", "2"),
    "finetune/controlnet.py": ("--training.batch-size", "2", "--rare-classes.min-pixels", "1"),
    "segtrain/train.py": ("--batch-size", "2"),
    "segtrain/compare.py": ("--resamples", "100"),
}
FIVE = [f"target-{name}" for name in ("cityscapes", "bdd100k", "mapillary", "acdc", "dark_zurich")]
SHARED = ["source", "collection", "target-dev", "oracle-heldout", "generated", "color-reinhard"]
STAGES = {
    "pocket_filters": [
        *SHARED, "train-reinhard-6-0", "many", "quality-none", "filter-reject", "filters-none-4-0",
        "filters-none-4-1", "filters-none-4-2", "filters-reject-4-0", "score-dev-none-4-0",
        "score-dev-reject-4-0", "development", "influence",
    ],
    "pocket_networks": [
        *SHARED, *FIVE, "unlabelled", "backbone", "backbone-weights", "train-dinov2-source_only-0",
        "train-dinov2-generated-0", "train-dinov2-reinhard-0", "score-dev-dinov2-0",
        "score-dinov2-0", "compare-dinov2",
    ],
    "pocket_correction": [
        "source", "oracle-train", "oracle-heldout", "head", "scale-0", "scale-0.25", "scale-0.5",
        "scale-1", "scale-2", "oracle", "scores",
    ],
}  # fmt: skip


def test_recipes_run_at_toy_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(FOLDER.parent.parent)
    made = set()
    for name, wanted in STAGES.items():
        text = (FOLDER / f"{name}.yaml").read_text()
        given = {key: str(size) for key, size in TOY.items() if f"\n  {key}: " in text}
        stages = {s.name: s for s in load_recipe(FOLDER / f"{name}.yaml", tmp_path, given).stages}
        assert set(wanted) <= set(stages), set(wanted) - set(stages)
        for stage in stages.values():
            if stage.name not in wanted or stage.name in made:
                continue
            program, *words = stage.command
            monkeypatch.setattr(sys, "argv", [program, *words, *SMALL.get(program, ())])
            AcceleratorState._reset_state(reset_partial_state=True)  # as in a process of its own
            module = importlib.import_module(program.removesuffix(".py").replace("/", "."))
            assert not module.main(), stage.name
            assert stage.marker.exists(), stage.name
            made.add(stage.name)
    tables = tmp_path / "filters" / "tables"
    assert set(read_json(tables / "development.json")["arms"]) == {"none_4", "reject_4"}
    influence = read_json(tables / "influence.json")
    assert influence["first"] == 4  # no network was trained on these images
    assert len(influence["samples"]) == 4 and len(influence["quarters"]) == 4
    arms = read_json(tmp_path / "networks" / "tables" / "dinov2.json")["arms"]
    assert set(arms) == {"source_only", "reinhard", "generated"}
    assert len(arms["generated"]["columns"]) == 8  # dev, five targets, their two averages

    capsys.readouterr()
    networks = importlib.import_module("experiments.networks")
    folder = tmp_path / "networks" / "tables"
    monkeypatch.setattr(sys, "argv", ["networks.py", "--tables", str(folder)])
    networks.main()
    assert "| dinov2 |" in capsys.readouterr().out
