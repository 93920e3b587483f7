"""YAML that somebody hands in: strict, bounded, one line for whatever is wrong."""

import dataclasses
import importlib
import json
import os
import random
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import label_spaces
from pipeline.catalogue.specs import DatasetSpec, load_spec
from pipeline.config import from_mapping, to_mapping
from pipeline.errors import UserError
from pipeline.stages import load_recipe
from pipeline.yaml_files import load_yaml

LAUGHS = "a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 10)
)
BAD = {
    "latin-1": ("n: 3 # Stra\u00dfe".encode("latin-1"), "not UTF-8"),
    "utf-16": ("n: 3".encode("utf-16"), "not UTF-8"),
    "utf-16 without mark": ("n: 3".encode("utf-16-le"), "not valid YAML"),
    "binary": (random.Random(0).randbytes(300), "not UTF-8|not valid YAML"),
    "NUL": (b"n: \x00", "not valid YAML"),
    "laughs": (LAUGHS.encode(), "more than 20000 values"),
    "merges": (MERGES.encode(), "more than 20000 values"),
    "cycle": (b"a: &a [*a]", "nested more than"),
    "cyclic key": (b"&a ? [*a] : 1", "nested more than|not valid"),
    "deep lists": (b"a: " + b"[" * 5000, "nested more than"),
    "deep mappings": (b"a: " + b"{b: " * 5000, "nested more than"),
    "deep blocks": (b"- " * 5000 + b"1", "nested more than"),
    "closed and deep": (b"[" * 70 + b"]" * 70, "nested more than"),
    "surrogate": (rb'a: "\ud800"', "half of a character|not valid YAML"),
    "twice": (b"n: 1\nn: 2", "'n' stands twice"),
    "twice below": (b"a: {b: 1, b: 2}", "'b' stands twice"),
    "list as key": (b"? [1, 2]\n: 3", "not valid YAML"),
    "python tag": (b"!!python/object/apply:os.system [echo]", "not valid YAML"),
    "python name": (b"a: !!python/name:os.system", "not valid YAML"),
    "empty int": (b'a: !!int ""', "not valid YAML"),
    "odd bool": (b"a: !!bool perhaps", "not valid YAML"),
    "odd date": (b"a: 2020-13-45", "not valid YAML"),
    "long int": (b"a: " + b"9" * 5000, "not valid YAML"),
    "two documents": (b"a: 1\n---\nb: 2", "not valid YAML"),
    "tab": (b"a:\n\tb: 1", "not valid YAML"),
    "large": (b"#" * (3 << 20), "larger than 1 MB"),
    "many values": (b"a: [" + b"1," * 180_000 + b"1]", "more than 10000 lines and list items"),
    "many lines": (b"- 1\n" * 180_000, "more than 10000 lines and list items"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_yaml_is_one_line_that_names_the_file(tmp_path: Path, name: str) -> None:
    data, message = BAD[name]
    path = tmp_path / "c.yaml"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        load_yaml(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and text.isprintable() and len(text) < 700


def test_pipes_folders_and_devices_are_no_yaml(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path / "pipe.yaml", tmp_path, Path("/dev/zero"), Path("/dev/stdin")):
        with pytest.raises(UserError):
            load_yaml(path)


def test_sound_yaml_is_what_the_safe_loader_reads(root: Path, tmp_path: Path) -> None:
    shipped = [*(root / "configs").rglob("*.yaml"), *(root / "datasets").rglob("*.yaml")]
    for path in shipped:
        assert load_yaml(path) == yaml.safe_load(path.read_text())
    path = tmp_path / "c.yaml"
    path.write_text("a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}\ne: *x\n")
    assert load_yaml(path)["d"] == {"b": 1, "c": 3}
    path.write_bytes(b"\xef\xbb\xbfn: 3\r\nm: 4\r\n")
    assert load_yaml(path) == {"n": 3, "m": 4}
    path.write_text("# nothing\n")
    assert load_yaml(path) == {}
    path.write_text("false\n")
    assert load_yaml(path) is False


PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["{name}", "{name", "{na-me}", "{name!r}", "{name:>9}", "../x", "yes", "1e3"]),
)
VALUES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.one_of(st.text(max_size=6), st.integers(), st.booleans()), inner, max_size=4
        )
    ),
    max_leaves=12,
)


def keyed(*names: str) -> st.SearchStrategy[Any]:
    """Mappings that mostly have the right keys, with anything behind them."""
    return st.dictionaries(st.sampled_from(names), VALUES, max_size=len(names)) | VALUES


def written(tmp_path_factory: pytest.TempPathFactory, data: Any) -> Path:
    """Write a value as YAML, into a folder of its own."""
    path = tmp_path_factory.mktemp("random") / "c.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


@settings(max_examples=120, deadline=None)
@given(
    data=st.one_of(
        keyed("title", "licence", "splits", "layouts", "prefixes", "eval_low_px", "get", "role"),
        st.builds(
            lambda **changes: {"title": "t", "licence": "l", "splits": {"all": {}}, **changes},
            layouts=st.lists(keyed("image", "label", "label_space"), max_size=2) | VALUES,
        ),
    )
)
def test_any_mapping_is_a_dataset_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    path = written(tmp_path_factory, data)
    try:
        spec = load_spec(str(path))
    except UserError as error:
        assert str(path) in str(error)
    else:
        assert from_mapping(DatasetSpec, to_mapping(spec), "again") == spec


@settings(max_examples=120, deadline=None)
@given(data=keyed("train_ids", "void") | keyed("train_colors", "void_colors"))
def test_any_mapping_is_a_label_space_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    path = written(tmp_path_factory, data)
    try:
        table = label_spaces.label_space(str(path))
    except UserError as error:
        assert str(path) in str(error)
    else:
        assert table.dtype == "uint8" and table.size in (256, 1 << 24)


@settings(max_examples=80, deadline=None)
@given(
    data=st.builds(
        lambda stages, workspace, values: {
            "workspace": workspace,
            "stages": stages,
            "values": values,
        },
        st.lists(keyed("name", "command", "output", "launcher", "done"), max_size=3) | VALUES,
        st.just("w") | VALUES,
        VALUES,
    )
)
def test_any_mapping_is_a_recipe_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    path = tmp_path_factory.mktemp("recipe") / "c.yaml"
    path.write_text(yaml.safe_dump(data))
    try:
        recipe = load_recipe(path)
    except UserError as error:
        assert str(path) in str(error)
    else:
        assert all("/" not in stage.name for stage in recipe.stages)


PROGRAMS = (
    "pipeline.prepare", "pipeline.preflight", "pipeline.download", "pipeline.report",
    "pipeline.run", "pipeline.pocket_city", "pipeline.convert_weights", "pipeline.export",
    "pipeline.verify", "generation.settings", "finetune.unet", "finetune.controlnet",
    "finetune.vae", "finetune.prior", "segtrain.train", "segtrain.score", "segtrain.predict",
)  # fmt: skip


def mappings_for(kind: type) -> st.SearchStrategy[Any]:
    """Mappings with names of settings of a config, groups built the same way, or anything."""
    kinds = typing.get_type_hints(kind)
    groups = {k: mappings_for(t) for k, t in kinds.items() if dataclasses.is_dataclass(t)}
    values = {name: groups.get(name, VALUES) for name in kinds}
    return st.fixed_dictionaries({}, optional=values) | keyed(*kinds)


@pytest.mark.parametrize("name", PROGRAMS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_settings_file_is_a_config_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    kind = importlib.import_module(name).Config
    path = tmp_path_factory.mktemp("config") / "c.yaml"
    path.write_text(yaml.safe_dump(data.draw(mappings_for(kind))))
    try:
        config = from_mapping(kind, load_yaml(path), str(path))
    except UserError as error:
        assert str(path) in str(error) and len(str(error)) < 4000
    else:
        assert json.loads(json.dumps(to_mapping(config), allow_nan=False)) == to_mapping(config)


@settings(max_examples=150, deadline=None)
@given(
    data=st.binary(max_size=60)
    | st.text(alphabet="[]{}&*!:-?,#|>%@`'\" \n\tabc019~<", max_size=60).map(str.encode)
)
def test_any_bytes_are_yaml_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("bytes") / "c.yaml"
    path.write_bytes(data)
    try:
        load_yaml(path)
    except UserError as error:
        assert str(error).startswith(f"{path}: ") and str(error).isprintable()
