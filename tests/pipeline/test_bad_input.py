"""Bad input of the programs that bring data in: each ends in one line, at once, writing nothing.

The programs are called as the command line calls them, through `main`.
"""

import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.errors import UserError
from pipeline.stage_records import read_record
from pipeline.stages import load_recipe

GOOD = {
    "title": "own",
    "licence": "own",
    "splits": {"all": {}},
    "layouts": [{"image": "images/{name}.png", "label": "labels/{name}.png"}],
}
Start = Callable[..., int | None]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Start:
    """Run the main of a program with a command line."""

    def call(program: str, *flags: object) -> int | None:
        monkeypatch.setattr(sys, "argv", [f"{program}.py", *map(str, flags)])
        return importlib.import_module(f"pipeline.{program}").main()

    return call


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """One pair in the layout of `GOOD`."""
    root = tmp_path / "tree"
    for folder, image in (
        ("images", Image.new("RGB", (4, 2))),
        ("labels", Image.fromarray(np.array([[0, 1, 2, 3]] * 2, np.uint8))),
    ):
        (root / folder).mkdir(parents=True)
        image.save(root / folder / "a.png")
    return root


def one_line(start: Start, message: str, program: str, *flags: object) -> None:
    """Check that a call ends in one line that a user can act on."""
    with pytest.raises(UserError, match=message) as caught:
        start(program, *flags)
    assert "\n" not in str(caught.value)


def layout(image: Any, label: Any = "labels/{name}.png", **more: Any) -> dict[str, Any]:
    return {**GOOD, "layouts": [{"image": image, "label": label, **more}]}


PREPARE: dict[str, tuple[Any, str]] = {
    "attribute": (layout("images/{name.x}.png"), "field names are letters"),
    "item": (layout("images/{name[0]}.png"), "field names are letters"),
    "unbalanced": (layout("images/{name.png"), "close every brace"),
    "closed alone": (layout("images/name}.png"), "close every brace"),
    "hyphen": (layout("images/{na-me}.png"), "field names are letters"),
    "empty field": (layout("images/{}.png"), "field names are letters"),
    "digit": (layout("images/{0}.png"), "field names are letters"),
    "conversion": (layout("images/{name!r}.png"), "has a format or conversion"),
    "bad conversion": (layout("images/{name!}.png"), "close every brace|conversion"),
    "label conversion": (layout("images/{name}.png", "labels/{name!x}.png"), "conversion"),
    "format": (layout("images/{name:>9}.png"), "has a format or conversion"),
    "label format": (layout("images/{name}.png", "labels/{name:9999999999}.png"), "has a format"),
    "nested format": (layout("images/{name:{name}}.png"), "has a format or conversion"),
    "other field": (layout("images/{name}.png", "labels/{stem}.png"), "not a field of its image"),
    "touching fields": (layout("images/{a}{b}.png", "labels/{a}{b}.png"), "text between them"),
    "many fields": (layout("_".join(f"{{a{i}}}" for i in range(30)), "x"), "more than 8 fields"),
    "absolute": (layout("/etc/{name}.png"), "plain path below --root"),
    "parent": (layout("../{name}.png"), "plain path below --root"),
    "back slash": (layout("images\\{name}.png"), "plain path below --root"),
    "empty image": (layout(""), "plain path below --root"),
    "empty label": (layout("images/{name}.png", ""), "plain path below --root"),
    "boolean image": (layout(True), "expected text, got True"),
    "null image": (layout(None), "expected text, got None"),
    "list image": (layout(["a"]), "expected text"),
    "label space absent": (layout("images/{name}.png", label_space="none"), "not known"),
    "label space path": (layout("images/{name}.png", label_space="../gta"), "not known"),
    "folder outside": ({**GOOD, "splits": {"all": {"folder": "../.."}}}, "plain path below"),
    "split outside": ({**GOOD, "splits": {"../x": {}}}, "plain path below"),
    "split true": ({**GOOD, "splits": {True: {}}}, "expected text, got True.*put it in quotes"),
    "splits null": ({**GOOD, "splits": None}, "expected a mapping"),
    "splits list": ({**GOOD, "splits": ["all"]}, "expected a mapping"),
    "count text": ({**GOOD, "splits": {"all": {"count": "many"}}}, "expected int"),
    "count huge": ({**GOOD, "splits": {"all": {"count": 10**30}}}, "must be a number from"),
    "scale nan": ({**GOOD, "eval_low_px": [float("nan"), 1]}, "expected int"),
    "scale of three": ({**GOOD, "eval_low_px": [1, 2, 3]}, "expected 2 values"),
    "no title": ({**GOOD, "title": ""}, "title is missing"),
    "no splits": ({**GOOD, "splits": {}}, "splits is missing"),
    "layouts mapping": ({**GOOD, "layouts": {"image": "x"}}, "expected a list"),
    "layout text": ({**GOOD, "layouts": ["x"]}, "expected a mapping of settings"),
    "unknown key": ({**GOOD, "colour": 1}, "unknown key 'colour'; known keys: title"),
    "unknown keys": ({**GOOD, True: 1, "foo": 2, 3: 4}, "unknown key"),
    "role": ({**GOOD, "role": "victim"}, "is not one of"),
    "prefixes list": ({**GOOD, "prefixes": ["a"]}, "expected a mapping"),
    "a list": ([1, 2], "expected a mapping of settings"),
    "a text": ("abc", "expected a mapping of settings"),
    "false": (False, "expected a mapping of settings"),
}


@pytest.mark.parametrize("program", ["prepare", "preflight"])
@pytest.mark.parametrize("name", PREPARE)
def test_mistakes_in_the_yaml_of_a_dataset(
    start: Start, tree: Path, tmp_path: Path, program: str, name: str
) -> None:
    data, message = PREPARE[name]
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(data))
    flags = ["--dataset", path, "--root", tree, "--workers", "1"]
    flags += ["--output", tmp_path / "out"] if program == "prepare" else []
    one_line(start, f"(?s)^{path}.*{message}|{message}", program, *flags)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("program", ["prepare", "preflight"])
def test_pipes_among_images_and_labels_are_listed_and_never_waited_for(
    start: Start, tree: Path, tmp_path: Path, program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(GOOD))
    for name in ("images/b.png", "labels/c.png"):
        os.mkfifo(tree / name)
    (tree / "images" / "c.png").symlink_to("/dev/zero")
    (tree / "labels" / "b.png").mkdir()
    flags = ["--dataset", tmp_path / "own.yaml", "--root", tree, "--workers", "1"]
    flags += ["--output", tmp_path / "out"] if program == "prepare" else []
    one_line(start, "4 faults in 3 pairs", program, *flags)
    lines = capsys.readouterr().out.splitlines()
    assert sum("not a regular file" in line for line in lines) == 4
    assert not (tmp_path / "out").exists()


SETTINGS: dict[str, tuple[str, list[str], str]] = {
    "no dataset": ("prepare", ["--output", "out"], "--dataset: not given"),
    "no output": ("prepare", ["--dataset", "gta", "--root", "."], "--output: no folder given"),
    "dataset path": ("prepare", ["--dataset", "../gta", "--output", "o"], "--root: not given"),
    "dataset outside": ("prepare", ["--dataset", "../gta", "--root", ".", "--output", "../o"],
                        "not in the catalogue"),
    "workers 0": ("prepare", ["--workers", "0"], "--workers 0: must be in 1..256"),
    "workers huge": ("preflight", ["--workers", "99999999"], "must be in 1..256"),
    "workers beyond": ("preflight", ["--workers", "9" * 30], "must be a number from"),
    "pocket size": ("pocket_city", ["--size-px", "1000000", "1000000"], "at most 8388608 pixels"),
    "pocket long": ("pocket_city", ["--size-px", "16", "99999999"], "at most 8388608 pixels"),
    "pocket small": ("pocket_city", ["--size-px", "15", "128"], "16 or more"),
    "pocket negative": ("pocket_city", ["--size-px", "-128", "-256"], "16 or more|see --help"),
    "pocket n": ("pocket_city", ["--n", "0"], "--n 0: must be 1 or more"),
    "pocket n huge": ("pocket_city", ["--n", "9" * 13], "must be in"),
    "pocket n beyond": ("pocket_city", ["--n", "9" * 30], "must be a number from"),
    "pocket first": ("pocket_city", ["--first", "-1"], "--first -1: must be in"),
    "pocket workers": ("pocket_city", ["--workers", "0"], "must be in 1..256"),
    "pocket split": ("pocket_city", ["--split", "../x"], "must be one of source"),
    "pocket nothing": ("pocket_city", ["--n", "1"], "--output: no folder given"),
    "processes": ("run", ["--num-processes", "9999999"], "must be in 1..1024"),
    "recipe": ("run", ["--recipe", "../pocket"], "no such file and no such recipe"),
    "report": ("report", ["--workspace", "none"], "no such folder"),
    "report address": ("report", ["--data", "s3://set"], "s3://set: is an address; name a folder"),
    "verify address": ("verify", ["--data", "s3://a/b"], "s3://a/b: is an address; name a dataset"),
    "browse address": ("browse", ["s3://a/b"], "s3://a/b: is an address; name a folder of this"),
    "per condition": ("report", ["--workspace", ".", "--per-condition", "0"], "1 or more"),
    "config absent": ("prepare", ["--config", "none.yaml"], "none.yaml: no such file"),
    "config folder": ("prepare", ["--config", "."], "is a folder, not a regular file"),
    "config device": ("prepare", ["--config", "/dev/zero"], "not a regular file"),
    "config pipe": ("prepare", ["--config", "pipe"], "pipe: is a pipe"),
    "config word": ("prepare", ["--config", "yes.yaml"], "split: expected text, got True"),
    "config number": ("prepare", ["--config", "huge.yaml"], "workers .*must be a number from"),
    "config key": ("prepare", ["--config", "key.yaml"], "unknown key True; known keys: dataset"),
    "config twice": ("prepare", ["--config", "twice.yaml"], "'workers' stands twice"),
    "config NUL": ("prepare", ["--config", "nul.yaml"], "holds a NUL character"),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    program, flags, message = SETTINGS[name]
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    for file, text in {
        "yes.yaml": "split: yes\n",
        "huge.yaml": f"workers: {10**30}\n",
        "key.yaml": "on: 2\nfoo: 1\n",
        "twice.yaml": "workers: 1\nworkers: 2\n",
        "nul.yaml": 'output: "a\\0b"\n',
    }.items():
        Path(file).write_text(text)
    before = sorted(os.listdir())
    one_line(start, message, program, *flags)
    monkeypatch.undo()
    assert sorted(os.listdir(tmp_path)) == before


STAGE = {"name": "a", "command": "x.py --output {workspace}/a", "output": "{workspace}/a"}
RECIPES: dict[str, tuple[Any, str]] = {
    "name outside": ({"name": "../../x"}, "stage name '../../x' must be letters"),
    "name absolute": ({"name": "/tmp/x"}, "must be letters"),
    "name hidden": ({"name": ".x"}, "must be letters"),
    "name line": ({"name": "a\nb"}, "must be letters"),
    "name long": ({"name": "a" * 300}, "must be letters"),
    "name true": ({"name": True}, "expected text, got True"),
    "name absent": ({"name": ""}, "needs `name`"),
    "command blank": ({"command": "  "}, "needs `name`, `command`"),
    "unclosed quote": ({"command": "x.py 'a"}, "command of a: No closing quotation"),
    "open escape": ({"command": "x.py \\"}, "command of a: No escaped character"),
    "command list": ({"command": ["x.py"]}, "expected text"),
    "unknown field": ({"command": "x.py {world}"}, "cannot be filled in"),
    "numbered field": ({"command": "x.py {}"}, "cannot be filled in"),
    "attribute": ({"command": "x.py {workspace.__class__}"}, "cannot be filled in"),
    "open brace": ({"command": "x.py {workspace"}, "cannot be filled in"),
    "format": ({"command": "x.py {workspace:>999999999999}"}, "has a format or conversion"),
    "conversion": ({"output": "{workspace!r}"}, "has a format or conversion"),
    "output outside": ({"output": "{workspace}/../x"}, "must not lead out"),
    "done outside": ({"done": "../x"}, "must not lead out"),
    "done absolute": ({"done": "/etc/passwd"}, "must not lead out"),
    "launcher": ({"launcher": "sh"}, "launcher 'sh' of a is not one of"),
    "processes": ({"cpu_processes": 0}, "it must be 1 or more"),
    "processes huge": ({"cpu_processes": 10**30}, "must be a number from"),
    "unknown key": ({"shell": "x"}, "unknown key 'shell'"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_mistakes_in_recipes(start: Start, tmp_path: Path, name: str) -> None:
    change, message = RECIPES[name]
    path = tmp_path / "recipe.yaml"
    recipe = {"workspace": str(tmp_path / "work"), "stages": [{**STAGE, **change}]}
    path.write_text(yaml.safe_dump(recipe))
    one_line(start, message, "run", "--recipe", path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"workspace": "w", "stages": []}, "needs `workspace` and `stages`"),
        ({"workspace": "w", "stages": "abc"}, "expected a list"),
        ({"workspace": "w", "stages": [STAGE, STAGE]}, "two stages are called a"),
        ({"workspace": "w", "stages": [STAGE], "values": {"a b": "x"}}, "must be a new name"),
        ({"workspace": "w", "stages": [STAGE], "values": {"workspace": "/"}}, "must be a new name"),
        ({"workspace": "w", "stages": [STAGE], "values": {"a": 1}}, "expected text, got 1"),
        (
            {
                "workspace": "w",
                "stages": [STAGE],
                "values": {f"a{i}": f"{{a{i - 1}}}" * 10 if i else "x" * 10 for i in range(9)},
            },
            "grows longer than",
        ),
        ([], "expected a mapping"),
    ],
)
def test_mistakes_in_recipe_files(tmp_path: Path, recipe: Any, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    with pytest.raises(UserError, match=message):
        load_recipe(path)


@pytest.mark.parametrize(
    "record",
    [[1], {}, {"stages": 1}, {"stages": {"a": 1}}, {"stages": {"a": {"digest": 1}}},
     {"stages": {"a": {"digest": "x", "inputs": [], "seconds": 1, "peak_mb": 1,
                       "finished_at": None, "command": ""}}}],
)  # fmt: skip
def test_an_odd_record_of_stages_is_one_line(tmp_path: Path, record: Any) -> None:
    (tmp_path / "timings.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="timings.json.*move it away"):
        read_record(tmp_path / "timings.json")
    assert read_record(tmp_path / "none.json") == {}
