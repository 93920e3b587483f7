"""Recipes of the pipeline runner: a YAML that lists stages, their commands and their marks.

Commands are one line of text each, split like a shell does. In every text `{workspace}` stands
for the workspace folder. A stage reads another one if its command names a path in, or above, the
other's output; nothing about this is written by hand.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path

from pipeline import files
from pipeline.config import digest, from_mapping, load_yaml
from pipeline.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "configs" / "pipeline"
LAUNCHERS = ("python", "accelerate")


@dataclass(frozen=True)
class StageText:
    """A stage as the recipe file spells it."""

    name: str = ""
    command: str = ""
    output: str = ""
    about: str = ""
    launcher: str = "python"
    done: str = ""
    cpu_processes: int = 1


@dataclass(frozen=True)
class RecipeText:
    """A recipe file."""

    workspace: str = ""
    stages: tuple[StageText, ...] = ()
    values: dict[str, str] | None = None


@dataclass(frozen=True)
class Stage:
    """A stage with its paths filled in.

    `command` are the words after the launcher's, `output` is the file or folder it writes,
    `marker` the file it writes last, `inputs` the names of the stages it reads. `cpu_processes`
    are started on a CPU if no number is asked for: for programs that share out samples and write
    the same with any number of processes.
    """

    name: str
    about: str
    launcher: str
    command: tuple[str, ...]
    output: Path
    marker: Path
    inputs: tuple[str, ...]
    cpu_processes: int = 1

    def fingerprint(self) -> str:
        """Return a digest of the command and of the config files it names."""
        named = [ROOT / word for word in self.command if word.startswith("configs/")]
        contents = [files.sha256(path.read_bytes()) for path in named if path.is_file()]
        return digest([*self.command, *contents])


@dataclass(frozen=True)
class Recipe:
    """Stages in the order they run."""

    workspace: Path
    stages: tuple[Stage, ...]


def find_recipe(name: str) -> Path:
    """Return the file of a recipe given by name or path."""
    path = FOLDER / f"{name}.yaml"
    if path.is_file():
        return path
    if Path(name).is_file():
        return Path(name)
    known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.yaml")))
    raise UserError(f"--recipe {name}: no such file and no such recipe; recipes: {known}")


def load_recipe(path: Path, workspace: Path | None = None) -> Recipe:
    """Read a recipe; `workspace` replaces the one it names."""
    text = from_mapping(RecipeText, load_yaml(path), str(path))
    if not text.workspace or not text.stages:
        raise UserError(f"{path}: a recipe needs `workspace` and `stages`; add what is missing")
    folder = workspace or Path(text.workspace)
    values = {"workspace": str(folder)}
    for key, value in (text.values or {}).items():
        values[key] = _fill(value, values, path)
    stages: list[Stage] = []
    for entry in text.stages:
        if not (entry.name and entry.command and entry.output):
            raise UserError(f"{path}: stage {entry.name!r} needs `name`, `command` and `output`")
        if entry.launcher not in LAUNCHERS:
            raise UserError(f"{path}: launcher {entry.launcher!r} of {entry.name} is not one of "
                            f"{', '.join(LAUNCHERS)}")  # fmt: skip
        if entry.cpu_processes < 1:
            raise UserError(f"{path}: cpu_processes of {entry.name} is {entry.cpu_processes}; it "
                            "must be 1 or more")  # fmt: skip
        if entry.name in [s.name for s in stages]:
            raise UserError(f"{path}: two stages are called {entry.name}; rename one")
        words = tuple(_fill(word, values, path) for word in shlex.split(entry.command))
        output = Path(_fill(entry.output, values, path))
        inputs = tuple(s.name for s in stages if _reads(words, s.output))
        marker = output / entry.done
        stages.append(Stage(entry.name, entry.about, entry.launcher, words, output, marker, inputs,
                            entry.cpu_processes))  # fmt: skip
    return Recipe(folder, tuple(stages))


def _fill(text: str, values: dict[str, str], path: Path) -> str:
    try:
        return text.format_map(values)
    except (KeyError, ValueError, IndexError) as error:
        known = ", ".join(f"{{{name}}}" for name in values)
        raise UserError(f"{path}: {text!r} cannot be filled in ({error}); known: {known}") from None


def _reads(words: tuple[str, ...], output: Path) -> bool:
    """Tell whether a word of a command names `output`, something in it or a folder above it."""
    paths = [Path(word) for word in words if not word.startswith("-")]
    return any(output == p or output in p.parents or p in output.parents for p in paths if p.parts)
