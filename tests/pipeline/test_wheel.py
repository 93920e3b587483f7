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
    for name in (*PACKAGES, "datasets", "configs"):
        shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, copy)
    subprocess.run(
        [sys.executable, "-c", BUILD, str(out)],
        cwd=copy,
        check=True,
        capture_output=True,
        timeout=300,
    )
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
        [sys.executable, "-c", code, *arguments],
        cwd=work,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(folder)},
    )


def test_wheel_holds_our_packages_whole_and_nothing_else(wheel: Path, root: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    ours = {str(p.relative_to(root)) for name in PACKAGES for p in (root / name).rglob("*.py")}
    recipes = {f"pipeline/{p.relative_to(root)}" for p in (root / "configs").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == ours | recipes
    data = {
        str(p.relative_to(root))
        for p in (root / "pipeline").rglob("*")
        if p.suffix in (".safetensors", ".json", ".txt", ".j2")
    }
    for folder, place in (
        ("labelspaces", "datasets/labelspaces"),
        ("dataset_specs", "datasets"),
        ("pocket_label_maps", "datasets/pocket_label_maps"),
    ):
        found = {
            f"pipeline/{folder}/{p.name}"
            for p in (root / place).iterdir()
            if p.suffix in (".yaml", ".png")
        }
        assert found, place
        data |= found
    data |= {f"pipeline/{p.relative_to(root)}" for p in (root / "configs").rglob("*.yaml")}
    assert not data - set(names)
    assert "pipeline/pocket/weights/base/unet/diffusion_pytorch_model.safetensors" in names


def test_installed_catalogue_is_the_checkouts(installed: Path, root: Path) -> None:
    code = (
        "from pipeline.catalogue.specs import known_datasets, load_spec\n"
        "for n in known_datasets(): print(load_spec(n) and n)"
    )
    done = run(installed, code)
    assert done.stdout.split() == sorted(p.stem for p in (root / "datasets").glob("*.yaml")), done


def test_installed_runner_knows_the_recipes_and_works_where_it_is_called(installed: Path) -> None:
    code = "import runpy; runpy.run_module('pipeline.run', run_name='__main__')"
    done = run(installed, code, "--recipe", "pocket", "--dry-run")
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    programs = {w for w in words if w.endswith(".py")}
    configs = {w for w in words if "/configs/" in w or w.startswith("configs/")}
    assert len(programs) > 3 and len(configs) > 3
    for word in programs | configs:
        assert Path(word).is_relative_to(installed) and Path(word).is_file(), word
    assert "--output runs/pocket/data/source" in done.stdout  # below the working folder
    code = code.replace("pipeline.run", "pipeline.pocket_city")
    done = run(installed, code, "--n", "1", "--workers", "1", "--output", "world")
    assert done.returncode == 0 and (installed.parent / "work/world/run.json").is_file()


def test_installed_programs_find_their_label_spaces(installed: Path) -> None:
    code = "from pipeline import label_spaces as m; print(m.__file__, m.label_space('gta')[7])"
    done = run(installed, code)
    assert done.stdout.split() == [str(installed / "pipeline" / "label_spaces.py"), "0"], (
        done.stderr
    )


def test_installed_generation_finds_its_label_maps(installed: Path) -> None:
    code = "from generation.run import console; console()"
    done = run(installed, code, "--n", "3", "--dry-run", "--output", "set")
    assert done.returncode == 0, done.stderr
    assert "48" in done.stdout and "3 are missing" in done.stdout
