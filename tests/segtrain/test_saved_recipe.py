"""Folders of trained networks that strangers made: nothing in them runs, each ends in one line."""

import copy
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError, guard
from segtrain import adapt, predict, recipes, saved_recipe, score
from segtrain.segmenter import Segmenter

HARM = "touch HARM"  # what the hostile recipes try to run


def _put(place: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Return a function that sets a value at a dotted place, making what is not there."""

    def change(saved: dict[str, Any]) -> None:
        *parents, last = place.split(".")
        node = saved
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        if isinstance(node, list):
            node[int(last)] = value
        else:
            node[last] = value

    return change


MODEL = "recipe.model"
RUN = {"type": "os.system", "command": HARM}
HOSTILE = {
    "command as backbone": _put(f"{MODEL}.backbone", RUN),
    "command as model": _put(f"{MODEL}", {**RUN, "backbone": {}, "decode_head": {}}),
    "command as norm": _put(f"{MODEL}.decode_head.norm_cfg", RUN),
    "command as activation": _put(f"{MODEL}.decode_head.act_cfg", RUN),
    "command as loss in a list": _put(f"{MODEL}.decode_head.loss_decode", [RUN]),
    "command as auxiliary head": _put(f"{MODEL}.auxiliary_head", [RUN]),
    "command as neck": _put(f"{MODEL}.neck", RUN),
    "command as preprocessor": _put(f"{MODEL}.data_preprocessor", RUN),
    "command as augmentation": _put(f"{MODEL}.data_preprocessor.batch_augments", [RUN]),
    "command as initialisation": _put(f"{MODEL}.init_cfg", RUN),
    "command as test transform": _put("recipe.test_pipeline.0", RUN),
    "command inside a transform": _put("recipe.test_pipeline.0.transforms", [RUN]),
    "command far from the network": _put("recipe.visualizer", {"vis_backends": [RUN]}),
    "command deep below facts": _put("facts", [[{"a": [RUN]}]]),
    "class path": _put(f"{MODEL}.backbone.type", "torch.hub.load"),
    "module without a dot": _put(f"{MODEL}.backbone.type", "antigravity"),
    "scope in a name": _put(f"{MODEL}.backbone.type", "mmengine::os.system"),
    "scope with a dot": _put(f"{MODEL}.backbone.type", "mmdet.ResNet"),
    "scope key": _put(f"{MODEL}.backbone._scope_", "mmdet"),
    "base key": _put("recipe._base_", "../other.py"),
    "delete key": _put(f"{MODEL}._delete_", True),
    "imports": _put("recipe.custom_imports", {"imports": ["harm"], "allow_failed_imports": True}),
    "import as text": _put("recipe.custom_imports", "harm"),
    "imports below the model": _put(f"{MODEL}.custom_imports", {"imports": ["harm"]}),
    "pretrained file": _put(f"{MODEL}.pretrained", "/tmp/harm.pth"),
    "pretrained address": _put(f"{MODEL}.backbone.pretrained", "http://127.0.0.1:9/harm.pth"),
    "pretrained deep": _put(f"{MODEL}.decode_head.sampler", {"pretrained": "harm.pth"}),
    "initial weights": _put(
        f"{MODEL}.backbone.init_cfg", {"type": "Pretrained", "checkpoint": "harm.pth"}
    ),
    "initial weights in a list": _put(
        f"{MODEL}.decode_head.init_cfg", [{"type": "Pretrained", "checkpoint": "s3://harm"}]
    ),
    "initial weights within others": _put(
        f"{MODEL}.decode_head.init_cfg",
        {"type": "Normal", "override": {"type": "Pretrained", "checkpoint": "harm", "name": "x"}},
    ),
    "pickle as class weights": _put(f"{MODEL}.decode_head.loss_decode.class_weight", "harm.pkl"),
    "pickle without a suffix": _put(f"{MODEL}.decode_head.loss_decode.class_weight", "pkl"),
    "path as an option": _put(f"{MODEL}.backbone.checkpoint", "../../harm"),
    "part that loads files": _put(f"{MODEL}.backbone.type", "VPD"),
    "part that downloads": _put(f"{MODEL}.backbone.type", "TIMMBackbone"),
    "loader of images": _put("recipe.test_pipeline.0", {"type": "LoadSingleRSImageFromFile"}),
    "option that looks like a path": _put(f"{MODEL}.backbone.a/b", 1),
    "initialisation smuggled in a key": _put(f"{MODEL}.neck", {"x.init_cfg": {"type": "Normal"}}),
    "trajectory elsewhere": _put(f"{MODEL}.neck", {"trajectory": {"type": "clean"}}),
}
BROKEN = {
    "no model": _put("recipe.model", None),
    "recipe a list": _put("recipe", []),
    "no recipe": lambda saved: saved.clear(),
    "backbone a text": _put(f"{MODEL}.backbone", "MixVisionTransformer"),
    "backbone without a type": lambda saved: saved["recipe"]["model"]["backbone"].pop("type"),
    "type a list": _put(f"{MODEL}.backbone.type", ["MixVisionTransformer"]),
    "unknown part": _put(f"{MODEL}.backbone.type", "ResNetV7"),
    "unknown option": _put(f"{MODEL}.backbone.colour", 3),
    "option of another type": _put(f"{MODEL}.backbone.num_layers", "many"),
    "channels that do not fit": _put(f"{MODEL}.decode_head.in_channels", [8, 8, 8, 9]),
    "other width": _put(f"{MODEL}.backbone.embed_dims", 33),
    "width beyond reason": _put(f"{MODEL}.backbone.embed_dims", 10**5),
    "width beyond everything": _put(f"{MODEL}.backbone.embed_dims", 10**30),
    "depth beyond reason": _put(f"{MODEL}.backbone.num_layers", [10**5, 1, 1, 1]),
    "classes beyond reason": _put(f"{MODEL}.decode_head.num_classes", 10**5),
    "other number of classes": _put(f"{MODEL}.decode_head.num_classes", 21),
    "negative width": _put(f"{MODEL}.backbone.embed_dims", -8),
    "not a number": _put(f"{MODEL}.backbone.drop_path_rate", float("nan")),
    "no way of testing": _put(f"{MODEL}.test_cfg", {}),
    "unknown way of testing": _put(f"{MODEL}.test_cfg.mode", "banana"),
    "windows without a size": _put(f"{MODEL}.test_cfg", {"mode": "slide"}),
    "windows without end": _put(
        f"{MODEL}.test_cfg", {"mode": "slide", "crop_size": [512, 512], "stride": [1, 1]}
    ),
    "windows with gaps": _put(
        f"{MODEL}.test_cfg", {"mode": "slide", "crop_size": [32, 32], "stride": [64, 64]}
    ),
    "transforms a mapping": _put("recipe.test_pipeline", {"type": "Resize"}),
    "transform a text": _put("recipe.test_pipeline.0", "Resize"),
    "scale beyond reason": _put(
        "recipe.test_pipeline.0", {"type": "Resize", "scale": [10**9, 10**9], "keep_ratio": True}
    ),
    "unknown resolution": _put("recipe.test_resolution", "medium"),
    "diffusion a list": _put("diffusion", []),
    "diffusion without a backbone of it": _put("diffusion", {"base": "pocket"}),
    "base a number": _put(f"{MODEL}.backbone.base", 5),
}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Path, source: Path) -> Path:
    """A tiny SegFormer after one update."""
    from segtrain import train

    folder = tmp_path_factory.mktemp("network") / "run"
    config = train.Config(recipe=tiny_recipe, source=source, output=folder, steps=1)
    train.run(config, train.check(config))
    return folder


@pytest.fixture
def changed(network: Path, tmp_path: Path, monkeypatch) -> Callable[..., Path]:
    """A function that copies the network with another recipe, into an empty working folder."""
    monkeypatch.chdir(tmp_path)
    saved = json.loads((network / "recipe.json").read_text())

    def make(change: Callable[[dict[str, Any]], None] = lambda _: None) -> Path:
        folder = tmp_path / "network"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(network, folder)
        other = copy.deepcopy(saved)
        change(other)
        (folder / "recipe.json").write_text(json.dumps(other))
        return folder

    return make


def run_main(program: Any, *arguments: object) -> int:
    """Run a program's command line in this process and return its exit code."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr("sys.argv", [program.__name__, *map(str, arguments)])
        guard(program.main)
    return int(stopped.value.code or 0)


def expect_line(capsys, name: str | Path) -> str:
    """Return the one line on stderr, which names a file or setting."""
    error = capsys.readouterr().err.strip()
    assert error.startswith("streetforge: ") and "\n" not in error, error
    assert "Traceback" not in error and str(name) in error
    return error


def readers(folder: Path, source: Path) -> list[tuple[Any, ...]]:
    """The command lines that read the folder of a trained network."""
    return [
        (score, "--checkpoint", folder, "--targets", source, "--output", "scores.json"),
        (predict, "--checkpoint", folder, "--images", source, "--output", "predictions"),
        (adapt, "--checkpoint", folder, "--target", source, "--output", "adapted"),
    ]


@pytest.mark.parametrize("name", [*HOSTILE, *BROKEN])
def test_bad_recipes_end_in_one_line(name, changed, source, tmp_path, capsys) -> None:
    folder = changed((HOSTILE | BROKEN)[name])
    with pytest.raises(UserError, match="recipe.json"):
        Segmenter.from_pretrained(folder)
    for command in readers(folder, source)[: None if name in HOSTILE else 1]:
        assert run_main(*command) == 2
        expect_line(capsys, "recipe.json")
    assert {path.name for path in tmp_path.iterdir()} <= {"network", "predictions", "adapted"}
    assert not any(path.is_file() for path in tmp_path.glob("*/*") if path.parent != folder)


def _text(content: bytes | str) -> Callable[[Path], None]:
    data = content.encode() if isinstance(content, str) else content
    return lambda path: path.write_bytes(data)


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


FILES = {
    "list": _text("[]"), "null": _text("null"), "empty": _text(""), "binary": _text(b"\xff\xfe\0"),
    "deep": _text("[" * 100_000), "twice": _text('{"recipe": 1, "recipe": 2}'),
    "pointer": _text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"),
    "pipe": _fifo, "folder": _folder, "absent": Path.unlink,
    "device": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
}  # fmt: skip
WEIGHTS = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "empty": _text(""),
    "pointer": FILES["pointer"],
    "pickle": _text(b"\x80\x02cos\nsystem\nX\x0a\0\0\0touch HARMtR."),
    "header of two gigabytes": _text(struct.pack("<Q", 2**31) + b"{}"),
    "header that is no JSON": _text(struct.pack("<Q", 2) + b"xx"),
    "folder": _folder,
    "pipe": _fifo,
    "device": FILES["device"],
}


@pytest.mark.parametrize(
    "file, how",
    [
        *(("recipe.json", how) for how in FILES),
        *(("model.safetensors", how) for how in WEIGHTS),
    ],
)
def test_bad_files_end_in_one_line(file, how, changed, source, capsys) -> None:
    folder = changed()
    (FILES if file == "recipe.json" else WEIGHTS)[how](folder / file)
    for command in readers(folder, source):
        assert run_main(*command) == 2
        expect_line(capsys, folder)
    with pytest.raises(UserError):
        Segmenter.from_pretrained(folder)


def test_weights_of_another_network_are_named(changed, network, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    folder = changed()
    weights = load_file(network / "model.safetensors")
    for change in ({"more": weights["decode_head.conv_seg.bias"].clone()}, {}):
        some = {**weights, **change}
        some.pop(next(iter(some)))
        save_file(some, folder / "model.safetensors")
        with pytest.raises(UserError, match="does not fit the weights beside it"):
            Segmenter.from_pretrained(folder)


def _values() -> st.SearchStrategy[Any]:
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    names = st.sampled_from(["type", "backbone", "init_cfg", "_scope_", "os.system", "scale"])
    return st.recursive(
        leaves | names,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(names | st.text(max_size=4), inner, max_size=3)
        ),
        max_leaves=8,
    )


PLACES = (
    "recipe", MODEL, f"{MODEL}.type", f"{MODEL}.backbone", f"{MODEL}.backbone.type",
    f"{MODEL}.backbone.embed_dims", f"{MODEL}.decode_head", f"{MODEL}.decode_head.norm_cfg",
    f"{MODEL}.decode_head.loss_decode", f"{MODEL}.test_cfg", f"{MODEL}.data_preprocessor",
    f"{MODEL}.auxiliary_head", "recipe.test_pipeline", "recipe.test_pipeline.0",
    "recipe.custom_imports", "recipe.test_resolution", "diffusion", "features",
)  # fmt: skip


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.sampled_from(PLACES), value=_values())
@example(place=f"{MODEL}.backbone.embed_dims", value=True)
def test_whatever_stands_in_a_recipe_is_taken_or_refused(network, place, value) -> None:
    saved = json.loads((network / "recipe.json").read_text())
    _put(place, value)(saved)
    try:
        saved_recipe.check(Path("recipe.json"), saved)
    except UserError as error:
        assert "\n" not in str(error) and "recipe.json" in str(error)
        return
    named = {v for _, k, v in saved_recipe._items(saved["recipe"]["model"], "") if k == "type"}
    assert named <= saved_recipe.PARTS | {*saved_recipe.INITS, *saved_recipe.TRAJECTORIES}


def test_every_listed_part_is_one_that_is_registered() -> None:
    import segtrain.registry  # noqa: F401, I001
    from mmengine.registry import MODELS as COMMON
    from mmseg.registry import MODELS, TRANSFORMS
    from segtrain.diffusion.trajectories import TRAJECTORIES

    registered = {*MODELS.module_dict, *COMMON.module_dict, "OHEMPixelSampler"}
    assert registered >= saved_recipe.PARTS
    transforms = {*TRANSFORMS.module_dict, *TRANSFORMS.parent.module_dict}
    assert transforms >= {*saved_recipe.TRANSFORMS, *saved_recipe.LOADERS}
    assert set(saved_recipe.TRAJECTORIES) == set(TRAJECTORIES)


def test_every_shipped_recipe_may_be_saved_and_read(root: Path) -> None:
    for path in sorted((root / "configs/segtrain").glob("*.py")):
        recipe = recipes.as_json(recipes.load_recipe(path))
        assert saved_recipe.unknown_parts(recipe) == [], path
        base = recipe["model"]["backbone"].get("base")
        facts = {"diffusion": {"base": base} if base else {}}
        saved_recipe.check(path, {"recipe": saved_recipe.portable(recipe), **facts})


def test_own_parts_are_announced_and_may_be_allowed(changed, capsys) -> None:
    model = {
        "backbone": {"type": "MyNet", "init_cfg": {"type": "Pretrained", "checkpoint": "x"}},
        "decode_head": {"type": "FCNHead", "pretrained": "x"},
        "test_cfg": {"mode": "whole"},
    }
    recipe = {"model": model, "test_pipeline": [], "custom_imports": {"imports": ["mine"]}}
    saved_recipe.warn(recipe)
    assert "notice: MyNet" in capsys.readouterr().err
    saved = {"recipe": saved_recipe.portable(recipe), "diffusion": {}}
    assert "x" not in json.dumps(saved) and "mine" not in json.dumps(saved)
    with pytest.raises(UserError, match="'MyNet' is not on the list of parts"):
        saved_recipe.check(Path("recipe.json"), saved)
    saved_recipe.allow("MyNet")
    try:
        saved_recipe.check(Path("recipe.json"), saved)
    finally:
        saved_recipe._allowed.clear()
