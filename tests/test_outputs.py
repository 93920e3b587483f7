"""May a program write there? The rule of `pipeline.output_folders`, through the command lines."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune import backbone, controlnet, prior, unet, vae
from generation import filter as filtering
from generation import run as generate
from generation import score as score_images
from generation import top_up
from pipeline import download, export, pocket_city, prepare, report
from pipeline.errors import guard
from segtrain import adapt, import_network, predict, train
from segtrain import score as score_networks

Call = Callable[..., tuple[int, str]]
ROOT = Path(__file__).resolve().parent.parent
RUN, DATASET, EXPORT = "run folder", "dataset folder", "export"
MARKERS = {RUN: "config.json", DATASET: "run.json", EXPORT: "export*.json",
           "download": "download.json"}  # fmt: skip
# Arguments of each program but --output, the kind of folder that it writes, and the setting of its
# main input. DATA is a dataset folder, BASE a base model, CONTROL a ControlNet.
PROGRAMS: dict[str, tuple[Any, str, str, list[str]]] = {
    "pocket_city": (pocket_city, DATASET, "", ["--n", "1", "--size-px", "16", "32"]),
    "prepare": (prepare, DATASET, "--root", ["--dataset", "gta", "--root", "DATA"]),
    "generate": (
        generate, DATASET, "--label-maps",
        ["--n", "1", "--label-maps", "DATA", "--base", "BASE", "--controlnet", "CONTROL"],
    ),
    "filter": (filtering, DATASET, "--data", ["--data", "DATA"]),
    "top up": (top_up, RUN, "--data", ["--data", "DATA"]),
    "score images": (score_images, RUN, "--data", ["--data", "DATA"]),
    "unet": (unet, RUN, "--data", ["--data", "DATA", "--base", "BASE"]),
    "controlnet": (controlnet, RUN, "--data", ["--data", "DATA", "--base", "BASE"]),
    "prior": (prior, RUN, "--data", ["--data", "DATA", "--vae", "BASE/vae"]),
    "vae": (vae, RUN, "--data", ["--data", "DATA"]),
    "backbone": (backbone, RUN, "--data", ["--data", "DATA"]),
    "train": (
        train, RUN, "--source",
        [str(ROOT / "configs/segtrain/segformer_pocket.py"), "--source", "DATA"],
    ),
    "predict": (predict, RUN, "--images", ["--images", "DATA"]),
    "adapt": (adapt, RUN, "--target", ["--target", "DATA"]),
    "export": (export, EXPORT, "--data", ["--data", "DATA", "--workers", "1"]),
    "download": (download, "download", "", ["--dataset", "gta"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tiny_dataset: Callable[..., Path]) -> Path:
    """Two labelled samples."""
    return tiny_dataset(n=2)


@pytest.fixture
def call(
    data: Path,
    tiny_base: Path,
    tiny_controlnet: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Call:
    """A function that runs a program of the table and returns its exit code and errors."""
    monkeypatch.chdir(tmp_path)
    named = {"DATA": str(data), "CONTROL": str(tiny_controlnet)}

    def run(program: str, *arguments: object) -> tuple[int, str]:
        module, _, _, given = PROGRAMS[program]
        words = [named.get(word, word.replace("BASE", str(tiny_base))) for word in given]
        monkeypatch.setattr(sys, "argv", [program, *words, *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            guard(module.main)
        return int(stopped.value.code or 0), capsys.readouterr().err.strip()

    return run


def somebodys_files(output: Path, kind: str) -> str:
    output.mkdir()
    (output / "thesis.txt").write_text("keep me")
    return f"holds thesis.txt and has no {MARKERS[kind]}, the mark of a"


def folder_of_another_kind(output: Path, kind: str) -> str:
    other = DATASET if kind == RUN else RUN
    output.mkdir()
    (output / MARKERS[other]).write_text('{"config": {}}')
    return f"is a {other} and has no {MARKERS[kind]}"


def file_in_the_way(output: Path, kind: str) -> str:
    output.write_text("keep me")
    return "is a file, not a folder"


def link_to_nothing(output: Path, kind: str) -> str:
    output.symlink_to("gone")
    return "is a link to nothing"


def link_in_place_of_the_marker(output: Path, kind: str) -> str:
    output.mkdir()
    name = MARKERS[kind].replace("*", "-train")
    (output.parent / "elsewhere").write_text('{"config": {}}')
    (output / name).symlink_to(output.parent / "elsewhere")
    return f"{name}: is a link"


REFUSED = (
    somebodys_files,
    folder_of_another_kind,
    file_in_the_way,
    link_to_nothing,
    link_in_place_of_the_marker,
)


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_what_is_not_its_own_is_refused(
    call: Call, tmp_path: Path, program: str, make: Callable[[Path, str], str]
) -> None:
    message = make(tmp_path / "out", PROGRAMS[program][1])
    before = {p: p.lstat().st_mtime_ns for p in sorted(tmp_path.rglob("*"))}
    code, line = call(program, "--output", tmp_path / "out")
    assert code == 2 and message in line and "choose another --output" in line
    assert "\n" not in line
    assert {p: p.lstat().st_mtime_ns for p in sorted(tmp_path.rglob("*"))} == before


@pytest.mark.parametrize("program", [name for name, row in PROGRAMS.items() if row[2]])
def test_output_lies_apart_from_the_input(call: Call, data: Path, program: str) -> None:
    setting = PROGRAMS[program][2]
    before = sorted(data.rglob("*"))
    for output, verb in ((data / "out", "lies in"), (data, "lies in"), (data.parent, "holds")):
        code, line = call(program, "--output", output)
        assert code == 2 and f"--output {output}: {verb} {setting} {data}" in line
        assert "choose another --output" in line
    assert sorted(data.rglob("*")) == before


@pytest.mark.parametrize("program", [n for n in PROGRAMS if n not in ("generate", "export")])
def test_address_makes_no_local_folder(call: Call, tmp_path: Path, program: str) -> None:
    code, line = call(program, "--output", "s3://bucket/set")
    assert code == 2 and "\n" not in line
    assert "s3://bucket/set: is an address; name a path of this machine with --output" in line
    assert not (tmp_path / "s3:").exists()


@pytest.mark.parametrize("program", ["pocket_city", "export", "unet"])
def test_folder_that_cannot_be_written_is_named(call: Call, program: str) -> None:
    code, line = call(program, "--output", "/proc/nowhere")
    assert code == 2
    assert "/proc/nowhere: cannot be written" in line and "choose another --output" in line


CONTINUED = {
    "pocket_city": (["--size-px", "32", "64"], "holds another run (size_px: [16, 32] -> [32, 64])"),
    "export": (["--shard-mb", "7"], "holds another export (shard_mb: 1000 -> 7)"),
}


@pytest.mark.parametrize("program", CONTINUED)
def test_own_folder_is_continued_and_another_run_is_refused(
    call: Call, tmp_path: Path, program: str
) -> None:
    """Files of the desktop and of launchers belong to nobody."""
    output = tmp_path / "out"
    output.mkdir()
    for name in (".DS_Store", "slurm-17.out", "job.log"):
        (output / name).write_text("x")
    assert call(program, "--output", output)[0] == 0
    made = {p: p.read_bytes() for p in sorted(output.rglob("*")) if p.is_file()}
    assert call(program, "--output", output)[0] == 0
    changes, message = CONTINUED[program]
    code, line = call(program, "--output", output, *changes)
    assert code == 2 and message in line
    assert "choose another --output, or repeat the command that began it" in line
    assert {p: p.read_bytes() for p in sorted(output.rglob("*")) if p.is_file()} == made


@pytest.mark.parametrize("make", [somebodys_files, file_in_the_way, link_to_nothing])
def test_what_is_never_continued_needs_a_new_folder(
    make: Callable[[Path, str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    message = make(tmp_path / "out", RUN).partition(" and has")[0]
    monkeypatch.setattr(sys, "argv", ["import_network", "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit):
        guard(import_network.main)
    line = capsys.readouterr().err
    assert message in line and "choose another --output" in line


def somebodys_file(path: Path) -> str:
    path.write_text("{}")
    return "exists and is no"


def folder(path: Path) -> str:
    path.mkdir()
    return "is a folder"


def link(path: Path) -> str:
    path.symlink_to("gone")
    return "exists and is no"


def pipe(path: Path) -> str:
    os.mkfifo(path)
    return "exists and is no"


@pytest.mark.parametrize("make", [somebodys_file, folder, link, pipe], ids=lambda m: m.__name__)
def test_files_replace_their_own_kind_alone(
    call: Call,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], str],
) -> None:
    path = tmp_path / "result"
    message = make(path)
    before = path.lstat()
    calls = {
        report: ["--workspace", data, "--output", path],
        score_networks: ["--targets", data, "--predictions", data, "--output", path],
    }
    for program, words in calls.items():
        monkeypatch.setattr(sys, "argv", ["program", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            guard(program.main)
        line = capsys.readouterr().err.strip()
        assert stopped.value.code == 2
        assert f"--output {path}: {message}" in line and "choose another --output" in line
    assert path.lstat() == before
