"""The project around the code: dependencies and pins, the wheel, texts without private paths."""

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pipeline", "finetune", "generation", "segtrain")
SOURCES = sorted(p for name in PACKAGES for p in (ROOT / name).rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def dependency_modules() -> set[str]:
    """Return the top-level modules of the declared dependencies that are installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        wanted += extra
    names = {w.split(">")[0].split("=")[0].split("<")[0].strip().lower() for w in wanted}
    modules = {"datasets", "peft", "evaluate", "tokenizers", "xformers", "controlnet_aux", "timm"}
    for module, owners in metadata.packages_distributions().items():
        if names & {o.lower() for o in owners}:
            modules.add(module)
    return modules


def test_no_file_shadows_the_standard_library_or_a_dependency() -> None:
    taken = set(sys.stdlib_module_names) | dependency_modules() | set(PACKAGES)
    clashes = [
        name_of(p)
        for p in SOURCES
        if len(p.relative_to(ROOT).parts) == 2 and not p.stem.startswith("__") and p.stem in taken
    ]
    assert not clashes


def test_the_test_extra_is_installed() -> None:
    """Tests that read with these packages would else be skipped without a word."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in map(Requirement, project["optional-dependencies"]["test"]):
        if requirement.marker is None or requirement.marker.evaluate():
            assert requirement.specifier.contains(metadata.version(requirement.name)), requirement


@pytest.mark.parametrize("extra", ["", "test", "dev", "docs"])
def test_pins_are_of_what_is_required(extra: str) -> None:
    """Every requirement of the packages, tests and tools has an exact pin that satisfies it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and line[0] != "#")
    pins = {canonicalize_name(name): version for name, version in pairs}
    texts = project["optional-dependencies"][extra] if extra else project["dependencies"]
    for requirement in map(Requirement, texts):
        if requirement.name == "setuptools":
            continue  # of the environment itself, which pip freeze leaves out
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin and requirement.specifier.contains(pin), str(requirement)


def test_the_wheel_names_every_package() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    ours = {".".join(p.parent.relative_to(ROOT).parts) for p in SOURCES if p.name == "__init__.py"}
    assert ours == set(setuptools["packages"]) - set(setuptools["package-dir"])
    for package in PACKAGES:
        assert (ROOT / package / "py.typed").exists()
        assert "py.typed" in setuptools["package-data"][package]


TEXTS = (".py", ".md", ".yaml", ".toml", ".sh", ".j2", ".ipynb", ".txt", "")
KEPT = ("pipeline", "finetune", "generation", "segtrain", "configs", "datasets", "scripts",
        "benchmarks", "experiments", "docs", "tests")  # fmt: skip


def test_texts_name_no_folder_of_a_machine() -> None:
    """Paths in examples are relative, or `/models/...` and `/data/...`, which nobody's are."""
    paths = [p for p in ROOT.iterdir() if p.is_file()]
    paths += [p for name in KEPT for p in (ROOT / name).rglob("*") if p.is_file()]
    texts = [p for p in paths if p.suffix in TEXTS and "__pycache__" not in p.parts]
    assert len(texts) > 200
    private = re.compile(r"(?<![\w/.])/(work|root|home|mnt|Users|scratch)/[\w.-]+/?[\w.-]*")
    for path in texts:
        if path.name != ".git" and (found := private.search(path.read_text(errors="replace"))):
            raise AssertionError(f"{name_of(path)} names {found[0]}")
