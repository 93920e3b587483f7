"""The wheel: our packages and nothing beside them, and its console scripts work on their own."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PACKAGES = ("pipeline", "finetune", "generation", "segtrain")
BUILD = "import sys, setuptools.build_meta as backend; backend.build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the checkout, since building leaves folders behind."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for name in (*PACKAGES, "datasets"):
        shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, copy)
    subprocess.run(
        [sys.executable, "-c", BUILD, str(out)],
        cwd=copy, check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the content of the wheel, outside the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(folder: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code that imports the wheel's packages, from an empty working folder."""
    work = folder.parent / "work"
    work.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=work, capture_output=True, text=True,
        timeout=300, env={**os.environ, "PYTHONPATH": str(folder)},
    )  # fmt: skip


def test_wheel_holds_our_packages_whole_and_nothing_else(wheel: Path, root: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    ours = {str(p.relative_to(root)) for name in PACKAGES for p in (root / name).rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == ours
    data = [p for p in (root / "pipeline").rglob("*") if p.suffix in (".safetensors", ".j2")]
    for folder in ("labelspaces", "pocket_layouts"):
        data += (root / "datasets" / folder).iterdir()
    held = {Path(name).name for name in names}
    assert data and not {path.name for path in data} - held


def test_installed_programs_find_their_label_spaces(installed: Path) -> None:
    code = "from pipeline import labels; print(labels.__file__, labels.label_space('gta')[7])"
    done = run(installed, code)
    assert done.stdout.split() == [str(installed / "pipeline" / "labels.py"), "0"], done.stderr


def test_installed_generation_finds_its_label_maps(installed: Path) -> None:
    code = "from generation.run import console; console()"
    done = run(installed, code, "--n", "3", "--dry-run", "--output", "set")
    assert done.returncode == 0, done.stderr
    assert "48" in done.stdout and "3 are missing" in done.stdout
