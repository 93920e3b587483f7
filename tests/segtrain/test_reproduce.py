"""Scripts that reproduce published tables: from raw files to the printed table, at toy size.

The toy has three pairs of each dataset in its published layout, tiny Stable Diffusions and tiny
networks. Each arm is trained with one seed; copies of it stand for the other seeds.
"""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from safetensors.torch import save_file

from pipeline.stages import Stage, find_recipe, load_recipe
from pipeline.yaml_files import load_yaml
from segtrain.diffusion.trajectories import DIFF_37_SAVED
from tests.test_documented_commands import TOY, write_tree

sys.path.insert(0, str(Path(__file__).parent))
from toy_models import toy_base

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(p for p in (ROOT / "scripts/reproduce").glob("*.sh")
                 if "published.sh" in p.read_text())  # fmt: skip
MIT = (
    "backbone=dict(embed_dims=8, num_layers=[1] * 4, num_heads=[1] * 4, sr_ratios=[2, 1, 1, 1]), "
    "decode_head=dict(in_channels=[8] * 4, channels=8, embed_dims=8)"
)
STYLES = "style_hallucination=dict(channels=8, num_styles=2, pool=4, interval=1)"
VIEWS = (
    "detail=dict(crop_size=(16, 32)), attention_head=dict(in_channels=[8] * 4, channels=8), "
    "test_cfg=dict(crop_size=(32, 32), stride=(32, 16))"
)
DIFF = (
    "backbone=dict(features=dict(out_channels=16, pyramid=[8, 8, 16, 16], trajectory=dict("
    f"targets={[*sorted(DIFF_37_SAVED), 105]}))), "
    "decode_head=dict(in_channels=[8, 8, 16, 16], embed_dims=8, channels=8)"
)
TOYS = {
    "daformer_gta": MIT,
    "daformer_shade_gta": f"{MIT}, {STYLES}",
    "diff_as_released_gta": DIFF,
    "diff_gta": DIFF,
    "flexseg_gta": MIT,
    "flexseg_hrda_gta": f"{MIT}, {VIEWS}, {STYLES}",
    "hrda_shade_gta": f"{MIT}, {VIEWS}, {STYLES}",
    "ptdiffseg_cityscapes": "neck=dict(in_channels=[8, 35, 51, 32], out_channels=8), "
    "decode_head=dict(in_channels=[8] * 4, channels=8)",
}
"""The networks of the tables, by the names of their recipes, with few channels."""
FIVE = ("cityscapes", "bdd100k", "mapillary_v1_2", "acdc", "dark_zurich")
GENERATION = ("--tile-px", "32", "32", "--stride-px", "16", "16", "--rare-classes.min-pixels", "1",
              "--crop-px", "64", "64", "--precision", "fp32")  # fmt: skip
SEED = ("--seed", "1")
ON_CPU = ("--training.precision", "fp32")  # the presets' fp16 needs a GPU
SMALL = {
    **TOY,
    "finetune/unet.py": (*TOY["finetune/unet.py"], *ON_CPU),
    "finetune/controlnet.py": (*TOY["finetune/controlnet.py"], *ON_CPU),
    "generation/run.py": (*TOY["generation/run.py"], *GENERATION),
    # of the four samples of this seed one is generated
    "segtrain/train.py": (*TOY["segtrain/train.py"], "--rare-classes.min-pixels", "1", *SEED),
    "segtrain/adapt.py": (*TOY["segtrain/adapt.py"], "--size-px", "64", "128"),
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


TABLES: dict[str, tuple[list[str], tuple[str, ...], str]] = {
    "dginstyle_table1": (
        ["daformer_source", "daformer_generated", "hrda_source", "hrda_generated"],
        FIVE,
        "HRDA + DGInStyle [Jia et al., ECCV 2024, table 1; quoted]",
    ),
    "dginstyle_table2": (
        ["daformer_source", "daformer_generated", "hrda_source", "hrda_generated"],
        FIVE[1:],
        "DAFormer [as CA-LoRA (CVPR 2026) reports it, table 2; quoted]",
    ),
    "flexseg_table": (
        ["daformer", "daformer_flexseg", "hrda", "hrda_flexseg"],
        FIVE,
        "HRDA + DGInStyle + FLEX-Seg [Kim et al., AAAI 2026, arXiv 2511.22948",
    ),
    "diff_table": (
        ["diff", "diff_as_released"],
        ("cityscapes", "acdc", "dark_zurich"),
        "DIFF [Ji et al., ICASSP 2025, arXiv 2406.00777",
    ),
    "ptdiffseg_table": (
        ["ptdiffseg", "adapted"],
        ("dark_zurich",),
        "PTDiffSeg [Gong et al., BMVC 2024, arXiv 2307.02138, table 4 of TADP; quoted]",
    ),
}
"""Arms, targets and one published row of each table."""


@pytest.fixture(scope="module")
def toy(
    tmp_path_factory: pytest.TempPathFactory,
    shrink: Callable[[str, str], Path],
    family_base: Callable[[str], Path],
) -> Callable[[str], dict[str, str]]:
    """A function that gives the values of a table's recipe for the toy, with its raw trees."""
    folder = tmp_path_factory.mktemp("reproduce")
    for name in ("gta", "dginstyle", *FIVE):
        write_tree(folder / name, name, "all" if name in ("gta", "dginstyle") else "val")
    write_tree(folder / "cityscapes", "cityscapes", "train")
    (folder / "recipes").mkdir()
    for name, model in TOYS.items():
        shutil.copy(shrink(name, model), folder / "recipes" / f"{name}.py")
    recipes = folder / "recipes"
    weights = backbone_weights(recipes / "daformer_gta.py", folder / "mit.safetensors")
    bases = {
        "dginstyle": family_base("sd15"),
        "diff": toy_base(folder / "sd21", "sd21", family_base),
        "ptdiffseg": toy_base(folder / "sd15", "sd15", family_base),
    }

    def values(table: str) -> dict[str, str]:
        found = {"raw": str(folder), "mit_b5": str(weights), "recipes": str(recipes),
                 "base": str(bases.get(table.split("_")[0], ""))}  # fmt: skip
        own = load_yaml(find_recipe(table))["values"]
        found |= {
            name: str(recipes / Path(text).name)
            for name, text in own.items()
            if text.startswith("configs/segtrain/")
        }
        return {name: text for name, text in found.items() if name in own}

    return values


@pytest.mark.parametrize("table", TABLES)
def test_a_table_is_made_from_raw_files(
    table: str, toy: Callable[[str], dict[str, str]], tmp_path: Path, monkeypatch, capsys
) -> None:
    arms, targets, row = TABLES[table]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    recipe = load_recipe(find_recipe(table), tmp_path / "work", toy(table))
    trained: dict[str, Path] = {}
    for stage in recipe.stages:
        arm, seed = re.fullmatch(r"(.+?)_?(\d?)", stage.name).groups()
        if seed and "--seed" in stage.command:
            assert stage.command[stage.command.index("--seed") + 1] == seed
        if stage.command[0] == "segtrain/train.py" and arm in trained:
            shutil.copytree(trained[arm], stage.output)
        else:
            run_stage(stage)
        if stage.command[0] == "segtrain/train.py":
            trained.setdefault(arm, stage.output)
        assert stage.marker.exists(), stage.name
    text = capsys.readouterr().out.replace("\\", "")
    found = json.loads((tmp_path / "work/table.json").read_text())
    assert found["order"] == arms
    columns, averages = found["columns"][: len(targets)], found["columns"][len(targets) :]
    assert columns == list(targets) and (averages == ["Avg3", "Avg5"]) == (targets == FIVE)
    for arm in arms:
        shown = found["arms"][arm]
        assert len(shown["networks"]) == (1 if table == "diff_table" else 3), arm
        assert all(0 <= shown["columns"][name]["mean"] <= 100 for name in targets), arm
    assert row in text and "the first 2 images of each target" in text
    scored = json.loads((tmp_path / "work/scores/scores.json").read_text())["sets"]
    assert {name: one["role"] for name, one in scored.items()} == dict.fromkeys(targets, "target")


@pytest.mark.parametrize("table", ["dginstyle_table1", "dginstyle_table2", "flexseg_table"])
def test_hrda_is_trained_as_by_dginstyle(table: str) -> None:
    """With SHADE, and crops that show more than 6,000 pixels of a rare class."""
    from segtrain import recipes

    trainings = [s.command for s in load_recipe(find_recipe(table)).stages if "hrda" in s.name]
    assert len(trainings) == 6
    for _, recipe, *words in trainings:
        model = recipes.load_recipe(ROOT / recipe).model
        assert model.type == "StreetforgeHRDASegmentor" and model.style_hallucination.weight == 10
        assert words[words.index("--rare-classes.min-crop-ratio") + 1] == "2.0"


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
