"""Every file in configs/ loads into what reads it, and strictly."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.config import from_layers, from_mapping
from pipeline.errors import UserError
from pipeline.pocket.splits import TARGETS as FIVE
from pipeline.stages import FOLDER, Stage, load_recipe
from pipeline.yaml_files import load_preset
from tests.test_readme import help_of

ROOT = Path(__file__).resolve().parent.parent
STAGE_YAMLS = sorted(
    p for s in ("finetune", "generation", "segtrain") for p in (ROOT / "configs" / s).glob("*.yaml")
)
OPTIONAL = {  # values that switch optional stages on
    "pocket_networks": {"photographs": "runs/data/camvid_test"},
    "pocket_filters": {"correction": "0.5"},
}
PIPELINES = sorted((ROOT / "configs" / "pipeline").glob("*.yaml"))


def entry_module(path: Path) -> str:
    """Return the entry whose file name the config's name begins with; run.py in generation."""
    stage = path.parent.name
    if stage == "generation":
        return "generation.run"
    stems = [p.stem for p in (ROOT / stage).glob("*.py") if path.stem.startswith(p.stem)]
    assert stems, f"{path.name} begins with no entry of {stage}/"
    return f"{stage}.{max(stems, key=len)}"


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


@pytest.mark.parametrize("path", STAGE_YAMLS, ids=name_of)
def test_yaml_loads_into_its_entrys_dataclass(path: Path) -> None:
    config_class = importlib.import_module(entry_module(path)).Config
    layers = load_preset(path)
    from_layers(config_class, layers)
    mapping = layers[-1].settings
    with pytest.raises(UserError, match="unknown key 'colour'; known keys"):
        from_mapping(config_class, {**mapping, "colour": 1}, str(path))


@pytest.mark.parametrize("path", [*STAGE_YAMLS, *PIPELINES], ids=name_of)
def test_config_opens_with_its_command(path: Path) -> None:
    head = [line for line in path.read_text().split("\n\n")[0].splitlines() if line.startswith("#")]
    assert head, "open the file with a comment: what, command, hardware, time"
    assert any(word in " ".join(head) for word in ("python", "accelerate launch", "make"))


@pytest.mark.parametrize("path", PIPELINES, ids=name_of)
def test_pipeline_recipe_names_programs_and_configs_that_exist(path: Path) -> None:
    recipe = load_recipe(path, given=OPTIONAL.get(path.stem))
    assert recipe.stages
    for stage in recipe.stages:
        assert (ROOT / stage.command[0]).is_file(), stage.command[0]
        for word in stage.command:
            if word.startswith("configs/"):
                assert (ROOT / word).is_file(), word


@pytest.mark.parametrize("path", PIPELINES, ids=name_of)
def test_pipeline_recipe_gives_options_that_its_programs_have(path: Path) -> None:
    stages = load_recipe(path, given=OPTIONAL.get(path.stem)).stages
    given = {(s.command[0], word) for s in stages for word in s.command if word[:2] == "--"}
    for program, option in sorted(given):
        assert re.search(rf"{re.escape(option)}\b", help_of(program)), f"{program} has no {option}"


@pytest.mark.parametrize("path", PIPELINES, ids=name_of)
def test_nothing_learns_from_a_target_and_no_choice_rests_on_one(path: Path) -> None:
    """Targets are rendered, scored and shown; what is compared there is scored on dev as well."""
    stages = load_recipe(path, given=OPTIONAL.get(path.stem)).stages
    rendered = {
        s.command[s.command.index("--split") + 1]: s
        for s in stages
        if s.command[0] == "pipeline/pocket_city.py"
    }
    targets = {rendered[name].name for name in FIVE if name in rendered}
    scored: dict[bool, set[str]] = {True: set(), False: set()}  # by: on one of the five targets
    for stage in stages:
        if targets & set(stage.inputs):
            assert stage.command[0] in ("segtrain/score.py", "pipeline/report.py"), stage.name
        if stage.command[0] == "segtrain/score.py":
            words = list(stage.command)
            checkpoints = words[words.index("--checkpoint") + 1 : words.index("--targets")]
            sets = {words[i] for i in range(words.index("--targets") + 1, len(words))}
            for name in (*FIVE, "dev"):
                if name in rendered and str(rendered[name].output) in sets:
                    scored[name in FIVE] |= set(checkpoints)
    # The demo compares three fixed networks; a recipe that weighs variants does it on dev.
    assert scored[True] == scored[False] or len(scored[True]) <= 3


def test_recipes_of_one_workspace_share_their_stages() -> None:
    """What two recipes make in one workspace is made once: one name, one command, one output."""
    by_workspace: dict[Path, dict[str, Stage]] = {}
    shared = set()
    for path in PIPELINES:
        recipe = load_recipe(path, given=OPTIONAL.get(path.stem))
        known = by_workspace.setdefault(recipe.workspace, {})
        for stage in recipe.stages:
            if earlier := known.get(stage.name):
                assert earlier.fingerprint() == stage.fingerprint(), f"{path.stem}: {stage.name}"
                shared.add(stage.name)
            for other in known.values():
                assert other.name == stage.name or other.output != stage.output, stage.name
        known |= {stage.name: stage for stage in recipe.stages}
    assert {"source", "generated", "train-generated-2000-0", "score-dev-reinhard-2000-2"} <= shared


def default_outputs() -> dict[str, Path]:
    """Return where each program writes without --output, if it has such a default."""
    found = {}
    for folder in ("pipeline", "finetune", "generation", "segtrain"):
        for path in sorted((ROOT / folder).glob("*.py")):
            if "    guard(main)\n" in path.read_text():
                config = getattr(importlib.import_module(f"{folder}.{path.stem}"), "Config", None)
                if output := getattr(config, "output", None):
                    found[f"{folder}/{path.name}"] = Path(output)
    return found


def test_no_default_output_lies_in_a_recipes_workspace() -> None:
    outputs = default_outputs()
    assert outputs["generation/run.py"] == Path("runs/generated")
    for recipe in map(load_recipe, PIPELINES):
        for program, path in outputs.items():
            meets = path.is_relative_to(recipe.workspace)
            assert not meets, f"{program} writes {path}, where the recipe keeps its own"


def test_pocket_table_names_the_stages_it_needs() -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "reproduce" / "pocket_table.sh", "--dry-run"],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    named = [s.split(":")[0][2:] for s in done.stdout.splitlines() if s.startswith("# ")]
    stages = {s.name: s for s in load_recipe(FOLDER / "pocket_ladder.yaml").stages}
    assert "score-generated-2000-2" in named
    for name in named:
        assert set(stages[name].inputs) <= set(named), name


def test_unknown_recipe_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    stage = {"name": "a", "command": "x.py", "output": "{workspace}/a", "colour": "red"}
    path.write_text(yaml.safe_dump({"workspace": "w", "stages": [stage]}))
    with pytest.raises(UserError, match="unknown key 'colour'"):
        load_recipe(path)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs" / "accelerate").glob("*.yaml")), ids=name_of
)
def test_accelerate_reads_its_files(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    assert load_config_from_file(str(path)).fsdp_config["fsdp_version"] == 2
