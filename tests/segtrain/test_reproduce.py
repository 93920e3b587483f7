"""Scripts that reproduce published tables: one whole at toy size, the others as dry runs.

The toy has three pairs of each dataset in its published layout, a tiny Stable Diffusion 1.5 and one
trained toy network, which stands for all networks of the table.
"""

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from safetensors.torch import save_file

from pipeline.stages import Stage, find_recipe, load_recipe
from tests.test_documented_commands import TOY, write_tree

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(p for p in (ROOT / "scripts/reproduce").glob("*.sh")
                 if "published.sh" in p.read_text())  # fmt: skip
DAFORMER = (
    "backbone=dict(embed_dims=8, num_layers=[1, 1, 1, 1], num_heads=[1, 1, 1, 1]), "
    "decode_head=dict(in_channels=[8, 8, 8, 8], channels=8, embed_dims=8)"
)
FIVE = ("cityscapes", "bdd100k", "mapillary_v1_2", "acdc", "dark_zurich")
GENERATION = ("--tile-px", "32", "32", "--stride-px", "16", "16", "--rare-classes.min-pixels", "1",
              "--crop-px", "64", "64", "--precision", "fp32")  # fmt: skip
SMALL = {
    **TOY,
    "generation/run.py": (*TOY["generation/run.py"], *GENERATION),
    "segtrain/train.py": (*TOY["segtrain/train.py"], "--rare-classes.min-pixels", "1"),
    "segtrain/score.py": ("--limit", "2", "--size-px", "64", "128"),
    "segtrain/compare.py": ("--resamples", "100"),
}


def run_stage(stage: Stage) -> None:
    """Run the program of a stage in this process, at the toy's size."""
    program, *words = stage.command
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [program, *words, *SMALL.get(program, ())])
        AcceleratorState._reset_state(reset_partial_state=True)  # as in a process of its own
        code = importlib.import_module(program.removesuffix(".py").replace("/", ".")).main()
    assert not code, stage.name


def backbone_weights(recipe: Path, path: Path) -> Path:
    """Write random weights of a recipe's backbone, as a file of mmsegmentation's names."""
    from segtrain import recipes

    model = recipes.build_model(recipes.load_recipe(recipe))
    save_file(model.backbone.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def toy(
    tmp_path_factory: pytest.TempPathFactory,
    shrink: Callable[[str, str], Path],
    family_base: Callable[[str], Path],
) -> dict[str, str]:
    """Raw trees of all datasets, and values of the recipe for the toy."""
    folder = tmp_path_factory.mktemp("reproduce")
    for name in ("gta", *FIVE):
        write_tree(folder / name, name, "all" if name == "gta" else "val")
    recipe = shrink("daformer_gta", DAFORMER)
    weights = backbone_weights(recipe, folder / "mit.safetensors")
    return {"raw": str(folder), "base": str(family_base("sd15")), "mit_b5": str(weights),
            "daformer": str(recipe), "hrda": str(recipe)}  # fmt: skip


def test_the_first_table_of_dginstyle_runs_from_raw_files_to_the_printed_table(
    toy: dict[str, str], tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    recipe = load_recipe(find_recipe("dginstyle_table1"), tmp_path / "work", toy)
    trained: Path | None = None
    for stage in recipe.stages:
        if stage.command[0] == "segtrain/train.py" and trained:
            shutil.copytree(trained, stage.output)  # one training stands for all
        else:
            run_stage(stage)
            if stage.command[0] == "segtrain/train.py":
                trained = stage.output
        assert stage.marker.exists(), stage.name
    text = capsys.readouterr().out
    found = json.loads((tmp_path / "work/table.json").read_text())
    assert found["order"] == [
        "daformer_source", "daformer_generated", "hrda_source", "hrda_generated",
    ]  # fmt: skip
    assert found["columns"] == [*FIVE, "Avg3", "Avg5"]
    assert len(found["arms"]["hrda_generated"]["networks"]) == 3
    assert "HRDA + DGInStyle [Jia et al., ECCV 2024, table 1; quoted]" in text.replace("\\", "")
    assert "48.99" in text and "the first 2 images of each target" in text
    acdc = json.loads((tmp_path / "work/scores/scores.json").read_text())["sets"]["acdc"]
    assert acdc["dataset"] == "acdc" and acdc["role"] == "target"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_name_their_data_and_the_stages_of_their_recipe(
    script: Path, tmp_path: Path
) -> None:
    assert len(SCRIPTS) == 5
    done = subprocess.run(
        [script, "--dry-run", "--workspace", tmp_path / "work"],
        env={**os.environ, "PYTHON": sys.executable, "RAW": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    stages = load_recipe(find_recipe(script.stem)).stages
    named = [s.split(":")[0][2:] for s in done.stdout.splitlines() if s.startswith("# ")]
    assert named == [stage.name for stage in stages]
    asked = {line.split()[0] for line in done.stdout.splitlines() if "is not there" in line}
    roots = {
        str(tmp_path / stage.command[stage.command.index("--dataset") + 1])
        for stage in stages
        if "--dataset" in stage.command
    }
    assert asked == roots and stages[-1].command[0] == "segtrain/compare.py"


def test_missing_data_ends_with_its_names(tmp_path: Path) -> None:
    done = subprocess.run(
        [ROOT / "scripts/reproduce/ptdiffseg_table.sh"],
        env={
            **os.environ,
            "PYTHON": f"{sys.executable} {ROOT}/tests/none.py",
            "RAW": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert f"missing in {tmp_path}: cityscapes dark_zurich" in done.stderr


@pytest.mark.parametrize("name", ["pocket_table", "diffseg_table", "ptdiffseg_table"])
def test_scripts_without_set_up_say_how_to_make_it(root: Path, name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [root / f"scripts/reproduce/{name}.sh"],
        env={**os.environ, "PYTHON": str(tmp_path / "python")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2 and not done.stdout and done.stderr.count("\n") == 1
    assert f"{tmp_path}/python is not there; run 'make setup'" in done.stderr


def test_a_script_without_options_refuses_them(root: Path) -> None:
    script = root / "scripts/reproduce/diffseg_table.sh"
    done = subprocess.run(["bash", script, "--dry-run"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == "--dry-run: is no option of this script; give a WORKSPACE or nothing\n"
