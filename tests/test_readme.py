"""Commands in README.md and docs/ are real: files exist and options are known."""

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from generation.settings import Config
from pipeline.stages import FOLDER, load_recipe

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
FOLDERS = ("pipeline", "finetune", "generation", "segtrain", "benchmarks", "experiments")
PACKAGE_PAGES = [ROOT / name / "README.md" for name in FOLDERS[:4]]
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]


def commands(*pages: Path) -> list[str]:
    """Return the command lines of all shell blocks, continuation lines joined."""
    lines = []
    text = "\n".join(page.read_text() for page in pages)
    for block in re.findall(r"```(?:bash|sh|shell)\n(.*?)```", text, re.S):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip() and not line.lstrip().startswith("#"):
                lines.append(line.strip())
    return lines


def inline_commands(*pages: Path) -> list[str]:
    """Return the commands of ours that stand within sentences and tables."""
    text = re.sub(r"```.*?```", "", "\n".join(page.read_text() for page in pages), flags=re.S)
    spans = re.findall(r"`((?:python|accelerate launch|torchrun|sbatch) [^`]*)`", text)
    return [" ".join(span.split()) for span in spans]


def program_and_options(command: str) -> tuple[str, list[str]] | None:
    """Return our program named in a command and its options, None for other commands."""
    words = shlex.split(command, comments=True)
    for index, word in enumerate(words):
        if re.fullmatch(rf"({'|'.join(FOLDERS)})/\w+\.py", word):
            return word, words[index + 1 :]
    return None


@cache
def help_of(program: str) -> str:
    done = subprocess.run(
        [sys.executable, program, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_readme_shows_the_two_commands() -> None:
    assert {"make demo", "make test"} <= {c.split("#")[0].strip() for c in commands(README)}


@pytest.mark.parametrize(
    "command",
    [
        c
        for c in [*commands(*PAGES), *inline_commands(*PAGES, ROOT / "CONTRIBUTING.md")]
        if program_and_options(c)
    ],
)
def test_command_names_real_files_and_options(command: str) -> None:
    found = program_and_options(command)
    assert found is not None
    program, words = found
    assert (ROOT / program).is_file(), program
    text = help_of(program)
    for word in words:
        if word.startswith("--"):
            assert re.search(rf"{re.escape(word)}\b", text), f"{program} has no {word}"
        elif word.startswith("configs/"):
            assert (ROOT / word).is_file(), word


def runs_paths(command: str) -> tuple[list[Path], list[Path]]:
    """Return what a command of ours writes below runs/ and what it reads there."""
    found = program_and_options(command)
    if found is None:
        return [], []
    program, words = found
    written, read = [], []
    option = ""
    for word in words:
        option = word if word.startswith("--") else option
        if word.startswith("runs/"):
            (written if option in ("--output", "--plan-file") else read).append(Path(word))
    if program == "generation/run.py" and "--output" not in words and "--dry-run" not in words:
        written.append(Config().output)
    return written, read


def test_readme_commands_read_what_earlier_ones_wrote() -> None:
    known: list[Path] = []
    for command in commands(README):
        written, read = runs_paths(command)
        for path in read:
            assert any(path.is_relative_to(k) for k in known), f"{path} is of no earlier: {command}"
        known += written


def test_readme_commands_write_outside_the_recipes_workspaces() -> None:
    workspaces = [load_recipe(path).workspace for path in FOLDER.glob("*.yaml")]
    for command in commands(README):
        for path in runs_paths(command)[0]:
            inside = [w for w in workspaces if path.is_relative_to(w) or w.is_relative_to(path)]
            assert not inside, f"{path} would meet the recipe that writes {inside[0]}: {command}"


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for command in commands(*PAGES):
        if command.startswith("make "):
            target = command.split()[1]
            assert re.search(rf"^{target}:", makefile, re.M), target


def test_the_page_of_files_names_every_file_once() -> None:
    page = (ROOT / "docs" / "files.md").read_text()
    for folder, block in re.findall(r"^## (\w+)/\n.*?^```\n(.*?)^```", page, re.S | re.M):
        listed = [line.split()[0] for line in block.splitlines()]
        paths = [p for suffix in ("py", "sh") for p in (ROOT / folder).rglob(f"*.{suffix}")]
        names = {p.relative_to(ROOT / folder).as_posix() for p in paths if p.stem != "__init__"}
        assert sorted(listed) == sorted(names), folder
        assert all(len(line.split()) > 1 for line in block.splitlines()), folder


def test_every_folder_with_programs_is_in_the_page_of_files_and_in_the_readme() -> None:
    page = (ROOT / "docs" / "files.md").read_text()
    assert set(re.findall(r"^## (\w+)/$", page, re.M)) == {*FOLDERS, "scripts"}
    tree = re.findall(r"^(\w+)/  +\S", README.read_text(), re.M)
    assert set(tree) == {*FOLDERS, "scripts", "configs", "datasets", "docs", "tests"}
    assert all((ROOT / folder).is_dir() for folder in tree) and len(set(tree)) == len(tree)


@pytest.mark.parametrize("page", PACKAGE_PAGES, ids=lambda page: page.parent.name)
def test_package_readmes_name_real_files(page: Path) -> None:
    names = re.findall(r"`([\w/]+(?:\.py|/))`", page.read_text())
    assert len(names) > 10 and len(page.read_text().splitlines()) < 25
    for name in names:
        assert any(path.match(name) for path in page.parent.rglob("*")), name


@pytest.mark.parametrize("page", [*PAGES, *PACKAGE_PAGES], ids=lambda page: page.relative_to(ROOT))
def test_images_and_links_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), target
