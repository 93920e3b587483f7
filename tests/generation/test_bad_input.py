"""Bad settings and output folders of every state end in one line before anything is written."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from generation import run
from pipeline.errors import UserError
from pipeline.hub import find_local

NOWHERE = "owner/name@" + "0" * 40
SETTINGS = [  # (flags, what the line says)
    (["--n", 9999999999999], "must be in 1..1000000"),
    (["--steps", 100000], "must be in 1..1000"),
    (["--seed", -1], "--seed -1: must be 0 or more"),
    (["--seed", 99999999999999999999999], "--seed"),
    (["--canvas-scale", 1e9], "must be in 0.0625..16"),
    (["--base-pass-scale", "inf"], "--base-pass-scale inf"),
    (["--base-pass-scale", 1e9], "must be in 0.0625..16"),
    (["--base-pass-scale", 1e-9], "must be in 0.0625..16"),
    (["--rare-classes.temperature", "inf"], "--rare-classes.temperature inf"),
    (["--rare-classes.temperature", "nan"], "--rare-classes.temperature nan"),
    (["--rare-classes.temperature", 1e-300], "must be in 1e-06..1000"),
    (["--crop-px", 1, 1, "--fusion", "none"], "both must be 8 or more"),
    (["--crop-px", 1, 1], "tile height exceeds the 1 px"),
    (["--crop-px", 0, 64], "both must be 1 or more"),
    (["--crop-px", 999999, 999999], "are more than 40000000"),
    (["--tile-px", -8, 16], "both must be 1 or more"),
    (["--stride-px", 4, 4, "--crop-px", 4096, 8192], "more than 100000; make it larger"),
    (["--vae-tile-px", 7], "must be 0 or a multiple of 16"),
    (["--vae-tile-px", 24], "must be 0 or a multiple of 16"),
    (["--label-height-px", 1000000], "must be in 0..16384"),
    (["--label-height-px", 16384], "more than 40000000; make it smaller"),
    (["--label-pattern", "/etc/*.png"], "must be relative to --label-maps"),
    (["--label-pattern", "../*.png"], "stay inside it"),
    (["--label-pattern", ""], "must be relative to --label-maps"),
    (["--label-pattern", "**x"], "no label map matches"),
    (["--guidance-scale", "nan"], "--guidance-scale nan"),
    (["--guidance-scale", 0], "must be above 0"),
    (["--guidance-interval", 1, 0], "two shares in 0..1, in order"),
    (["--controlnet-scale", "inf"], "--controlnet-scale inf"),
    (["--min-region-share", "nan"], "--min-region-share nan"),
    (["--tile-batch", 9999999999], "must be in 1..4096"),
    (["--cpu-threads", 999999], "must be in 1..1024"),
    (["--second-control.scale", -3], "must be in 0..10"),
    (["--second-control.canny-thresholds", 9, 1], "two numbers of 0 or more, in order"),
    (["--label-maps", "/dev/null"], "no such folder of label maps"),
    (["--unet", "/etc"], "has no config.json"),
    (["--label-space", "/etc/passwd"], "not known; use one of"),
    (["--solver", "ddim"], "--solver: is now called --scheduler; rename it"),
    (["--rcs-min-pixels=9"], "--rcs-min-pixels: is now called --rare-classes.min-pixels"),
    (["--structure.kind", "canny"], "is now called --second-control.kind; rename it"),
]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, flags: list[str]) -> Callable[..., int]:
    """A function that runs the program in this process and returns its exit code."""

    def run_main(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["run.py", *flags, *map(str, arguments)])
        return run.main() or 0

    return run_main


def refused(call: Callable[..., int], *arguments: object) -> str:
    """Run the program, which must refuse in one line, and return the line."""
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("given", "message"), SETTINGS)
def test_bad_settings(call, tmp_path, given, message):
    assert message in refused(call, *given, "--output", tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_hub_id_that_is_not_here_and_cannot_be_fetched(call, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert find_local(NOWHERE) is None
    output = ("--output", tmp_path / "set")
    assert "cannot be fetched" in refused(call, "--base", NOWHERE, *output)
    assert not (tmp_path / "set").exists()


def test_size_that_no_base_tells_is_asked_for(monkeypatch, tiny_base, tmp_path):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    path = base / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sample_size": None}))
    monkeypatch.setattr(sys, "argv", ["run.py", "--base", str(base), "--dry-run"])
    with pytest.raises(UserError, match="set --crop-px, --tile-px, --stride-px"):
        run.main()


@pytest.mark.parametrize("kind", ["text", "folder", "long", "rows"])
def test_plan_file_is_never_written_over_something_else(call, tmp_path, kind, tiny_dataset):
    path = tmp_path / "mine"
    if kind == "folder":
        path.mkdir()
    elif kind == "long":
        path = tmp_path / ("x" * 300)
    elif kind == "rows":
        path = tiny_dataset(1, 32, 64) / "metadata-000.jsonl"
    else:
        path.write_text("keep me\n")
    before = path.read_bytes() if kind in ("text", "rows") else None
    line = refused(call, "--plan-file", path, "--dry-run", "--output", tmp_path / "set")
    assert "--plan-file" in line
    assert before is None or path.read_bytes() == before


def test_older_plan_is_replaced(call, tmp_path):
    for n in (1, 3):
        arguments = ("--n", n, "--plan-file", tmp_path / "plan.jsonl", "--output", tmp_path / "set")
        assert call(*arguments, "--dry-run") == 0
        assert len((tmp_path / "plan.jsonl").read_text().splitlines()) == n


# Output folders


@pytest.fixture(scope="module")
def made(tmp_path_factory, flags) -> Path:
    """A set of one sample."""
    folder = tmp_path_factory.mktemp("made") / "set"
    with pytest.MonkeyPatch.context() as patch:
        words = [*flags, "--n", "1", "--steps", "1", "--output", str(folder)]
        patch.setattr(sys, "argv", ["run.py", *words])
        assert not run.main()
    return folder


def _replaced(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        make(path)

    return change


def _file(path: Path) -> None:
    path.write_text("x")


OUTPUTS = {  # how the folder was changed, and what the line says
    "claims a file": (_replaced("claims", _file), "claims: is not a folder"),
    "claim a pipe": (
        lambda folder: ((folder / "claims").mkdir(), os.mkfifo(folder / "claims" / "00000001")),
        "claims/00000001: is not a file",
    ),
    "claim a link": (
        lambda folder: ((folder / "claims").mkdir(), (folder / "claims/a").symlink_to("/none")),
        "claims/a: is a link",
    ),
    "labels a file": (_replaced("labels", _file), "labels: is not a folder"),
    "images a link": (
        _replaced("images", lambda path: path.symlink_to(path.parent.parent)), "images: is a link",
    ),
    "shard a file": (_replaced("labels/0000", _file), "labels/0000: is not a folder"),
    "card a folder": (_replaced("README.md", Path.mkdir), "README.md: is not a file"),
    "status a folder": (_replaced("status.json", Path.mkdir), "status.json: is not a file"),
    "rows a folder": (
        _replaced("metadata-000.jsonl", Path.mkdir), "metadata-000.jsonl: is not a file",
    ),
    "rows a pipe": (
        _replaced("metadata-001.jsonl", os.mkfifo), "metadata-001.jsonl: is not a file",
    ),
    "rows a link to nothing": (
        _replaced("metadata-001.jsonl", lambda path: path.symlink_to("/none/x")), "is a link",
    ),
    "rows nested deeply": (
        _replaced("metadata-001.jsonl", lambda path: path.write_text("[" * 99999 + "\n")),
        "broken row",
    ),
    "row of a negative sample": (
        _replaced(
            "metadata-001.jsonl", lambda path: path.write_text('{"id": "-5", "status": "ok"}\n')
        ),
        "broken row",
    ),
    "run of other settings": (
        _replaced("run.json", lambda path: path.write_text('{"config": {"seed": 5}}')),
        "holds another run",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", OUTPUTS)
def test_changed_output_folder(call, made, tmp_path, kind):
    change, message = OUTPUTS[kind]
    folder = shutil.copytree(made, tmp_path / "set")
    change(folder)
    before = sorted(folder.rglob("*"))
    line = refused(call, "--n", 2, "--steps", 1, "--output", folder)
    assert message in line and str(folder) in line
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("name", ["x" * 300, "y/" * 2500, "nothing", "file"])
def test_output_that_can_be_no_folder(call, tmp_path, name):
    (tmp_path / "file").write_text("keep me")
    (tmp_path / "nothing").symlink_to(tmp_path / "gone")
    assert "choose another --output" in refused(call, "--output", tmp_path / name)
    assert (tmp_path / "file").read_text() == "keep me"


@pytest.mark.parametrize("content", ["", "[]", "null", '{"config": null}', '{"conf', None])
def test_lost_record_is_written_again_by_the_command_that_made_the_set(
    call, made, tmp_path, capsys, content
):
    folder = shutil.copytree(made, tmp_path / "set")
    if content is None:
        (folder / "run.json").unlink()
    else:
        (folder / "run.json").write_text(content)
    line = refused(call, "--n", 1, "--steps", 1, "--seed", 7, "--output", folder)
    assert "repeat the very command that made the folder" in line
    assert call("--n", 1, "--steps", 1, "--output", folder) == 0
    assert (folder / "run.json").read_bytes() == (made / "run.json").read_bytes()
    assert "written again" in capsys.readouterr().err


def test_damaged_cache_of_the_label_maps_is_measured_again(call, made, tmp_path):
    folder = shutil.copytree(made, tmp_path / "set")
    for content in (b"\xff\x00", b"[]", b'{"key": 1}'):
        (folder / "label_maps.json").write_bytes(content)
        assert call("--n", 1, "--steps", 1, "--output", folder) == 0
        assert (folder / "label_maps.json").read_bytes() == (made / "label_maps.json").read_bytes()


def test_results_do_not_lie_with_the_label_maps(call, tiny_dataset):
    folder = tiny_dataset(1, 32, 64)
    for label_maps, output in (("", "set"), ("", ""), ("labels", "")):
        line = refused(call, "--label-maps", folder / label_maps, "--output", folder / output)
        assert "--label-maps" in line and "results would mix with input" in line


def test_start_with_a_wrong_setting_binds_nobody(call, tmp_path, monkeypatch):
    """It stops in the middle, when all is loaded; the right setting then goes on."""
    from generation.sampler.sampler import Sampler

    def no_memory(self, requests):
        raise UserError("--vae-tile-px 0: the device ran out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "start", no_memory)
        assert "out of memory" in refused(
            call, "--n", 1, "--steps", 2, "--output", tmp_path / "set"
        )
    assert not (tmp_path / "set" / "run.json").exists()
    assert call("--n", 1, "--steps", 1, "--output", tmp_path / "set") == 0


def test_changed_source_images_are_another_set(call, tiny_dataset, tmp_path):
    data, folder = tiny_dataset(2, 32, 64), tmp_path / "set"
    arguments = ("--n", 1, "--steps", 1, "--label-maps", data, "--color-transfer", "source")
    assert call(*arguments, "--output", folder) == 0
    first, second = sorted((data / "images").rglob("*.png"))
    first.write_bytes(second.read_bytes())
    assert "data.images: '" in refused(call, *arguments, "--output", folder)
