"""Recipes of the pipeline runner: a YAML that lists stages, their commands and their marks.

Commands are one line of text each, split like a shell does. In every text `{workspace}` stands
for the workspace folder, and `{name}` for an entry of `values`. A stage with `each: {seed: [0, 1]}`
stands for one stage per value, with `{seed}` in its texts. An entry with `stages` is a group: its
stages are repeated together for each value. A stage or group whose text `when` is empty is left
out. A stage reads another one if its command names a path in, or above, the other's output, also
behind `NAME=`; nothing about this is written by hand.
"""

import itertools
import math
import re
import shlex
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.config import digest, from_mapping
from pipeline.errors import UserError
from pipeline.labels import shipped
from pipeline.yaml_files import load_preset, load_yaml

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = shipped("configs")
FOLDER = CONFIGS / "pipeline"
IN_CHECKOUT = CONFIGS.parent == ROOT
LAUNCHERS = ("python", "accelerate")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # of a stage: it names its log file
MAX_STAGES = 1000  # of a recipe, repeated ones counted
LONGEST = 10_000  # characters of a text with its fields filled in


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
    compiled: bool = False
    each: dict[str, tuple[Any, ...]] | None = None
    """Repeat the stage for each value of a name, for each combination of several names."""
    when: str | None = None
    """Leave the stage out if this text is empty once its fields are filled in."""
    stages: tuple["StageText", ...] = ()
    """A group has these stages in place of a command; they are repeated together."""


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
    the same with any number of processes. `compiled` networks train by accelerate's inductor
    backend.
    """

    name: str
    about: str
    launcher: str
    command: tuple[str, ...]
    output: Path
    marker: Path
    inputs: tuple[str, ...]
    cpu_processes: int = 1
    compiled: bool = False

    def fingerprint(self) -> str:
        """Return a digest of the command and of the config files it names."""
        named = [
            ROOT / word
            for word in self.command
            if Path(word).parts[:1] == ("configs",) or Path(word).is_relative_to(CONFIGS)
        ]
        read = [file for path in named if path.is_file() for file in _with_bases(path)]
        contents = [files.sha256(path.read_bytes()) for path in read]
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


def load_recipe(
    path: Path, workspace: Path | None = None, given: dict[str, str] | None = None
) -> Recipe:
    """Read a recipe; `workspace` and the `given` values replace those it names."""
    text = from_mapping(RecipeText, load_yaml(path), str(path))
    if not text.workspace or not text.stages:
        raise UserError(f"{path}: a recipe needs `workspace` and `stages`; add what is missing")
    folder = workspace or Path(text.workspace)
    values = _fill_values(text.values or {}, given or {}, folder, path)
    stages: list[Stage] = []
    names: set[str] = set()
    for entry, own_values in _repeated(text.stages, values, path):
        _check_stage(entry, path)
        if len(stages) == MAX_STAGES:
            raise UserError(f"{path}: makes more than {MAX_STAGES} stages; list fewer values")
        if entry.name in names:
            raise UserError(f"{path}: two stages are called {entry.name}; rename one")
        names.add(entry.name)
        stages.append(_build_stage(entry, own_values, stages, path))
    return Recipe(folder, tuple(stages))


def _fill_values(
    own: dict[str, str], given: dict[str, str], workspace: Path, path: Path
) -> dict[str, str]:
    """Return the workspace and the values of a recipe, those on the command line first."""
    for key in given:
        if key not in own:
            known = ", ".join(own) or "it has none"
            raise UserError(f"--values {key}: no value of {path}; known: {known}")
    values = {"workspace": str(workspace)}
    for key, value in (own | given).items():
        if not key.isidentifier() or key in values:
            raise UserError(f"{path}: values: {key!r} must be a new name of letters and digits")
        values[key] = _fill(value, values, path)
    return values


def _build_stage(
    entry: StageText, values: dict[str, str], before: Sequence[Stage], path: Path
) -> Stage:
    """Fill in the command and the paths of a stage; its inputs are among the stages `before`."""
    try:
        split = shlex.split(entry.command)
    except ValueError as error:
        raise UserError(f"{path}: command of {entry.name}: {error}; close every quote") from None
    words = tuple(locate(_fill(word, values, path)) for word in split)
    output = Path(_fill(entry.output, values, path))
    _require_within(entry, output, path)
    # A path may stand behind a name: `loss=DIR/metrics.jsonl`, `--data=DIR`
    read = [Path(word.rpartition("=")[2]) for word in words if word[:1] != "-" or "=" in word]
    return Stage(
        name=entry.name,
        about=entry.about,
        launcher=entry.launcher,
        command=words,
        output=output,
        marker=output / entry.done,
        inputs=tuple(stage.name for stage in before if _reads(read, stage.output)),
        cpu_processes=entry.cpu_processes,
        compiled=entry.compiled,
    )


def _repeated(
    entries: Sequence[StageText], values: dict[str, str], path: Path
) -> Iterator[tuple[StageText, dict[str, str]]]:
    """Yield every stage with the values of its texts, once for each combination of its `each`.

    Name and description are filled in. The stages of a group are repeated in turn.
    """
    for entry in entries:
        for own in _combinations(entry, values, path):
            if entry.when is not None and not _fill(entry.when, own, path).strip():
                continue
            if entry.stages:
                if replace(entry, each=None, when=None, stages=()) != StageText():
                    raise UserError(
                        f"{path}: a group of stages has `each`, `when` and `stages` alone; move "
                        "the rest to its stages"
                    )
                yield from _repeated(entry.stages, own, path)
                continue
            name, about = (_fill(text, own, path) for text in (entry.name, entry.about))
            yield replace(entry, name=name, about=about), own


def _combinations(entry: StageText, values: dict[str, str], path: Path) -> Iterator[dict[str, str]]:
    """Yield the values with each combination of an entry's `each`; the last name varies fastest."""
    each, title = entry.each or {}, entry.name or "a group"
    if entry.each is not None and not (each and all(each.values())):
        raise UserError(f"{path}: each of {title!r}: names no value; list at least one")
    for name, choices in each.items():
        if not name.isidentifier() or name in values:
            raise UserError(
                f"{path}: each of {title!r}: {name!r} must be a new name of letters and digits"
            )
        if not all(type(choice) in (str, int) for choice in choices):
            raise UserError(f"{path}: each of {title!r}: {name} must list texts or whole numbers")
    if math.prod(map(len, each.values())) > MAX_STAGES:
        raise UserError(f"{path}: each of {title!r}: makes more than {MAX_STAGES} stages")
    for chosen in itertools.product(*each.values()):
        filled = (_fill(str(choice), values, path) for choice in chosen)
        yield values | dict(zip(each, filled, strict=True))


def _check_stage(entry: StageText, path: Path) -> None:
    """Raise `UserError` unless a stage has what it needs, and plain names."""
    if not (entry.name and entry.command.strip() and entry.output):
        raise UserError(f"{path}: stage {entry.name!r} needs `name`, `command` and `output`")
    if not NAME.fullmatch(entry.name):
        raise UserError(
            f"{path}: stage name {entry.name[:100]!r} must be letters, digits, '.', '_' and '-', "
            "as it names a log file"
        )
    if entry.launcher not in LAUNCHERS:
        raise UserError(
            f"{path}: launcher {entry.launcher!r} of {entry.name} is not one of "
            f"{', '.join(LAUNCHERS)}"
        )
    if entry.cpu_processes < 1:
        raise UserError(
            f"{path}: cpu_processes of {entry.name} is {entry.cpu_processes}; it must be 1 or more"
        )
    _require_within(entry, Path(entry.output), path)


def _require_within(entry: StageText, output: Path, path: Path) -> None:
    """Raise `UserError` for an output, with its fields filled in or not, that leads elsewhere."""
    if ".." in output.parts or ".." in Path(entry.done).parts or entry.done[:1] == "/":
        raise UserError(
            f"{path}: output and done of {entry.name} must not lead out of their folder by '..' "
            "or '/'; name the file within it"
        )


def locate(word: str) -> str:
    """Return a word of a command; a program or config of ours by its path outside a checkout."""
    if IN_CHECKOUT:
        return word  # runs start there, and relative names keep records valid when it moves
    first, _, rest = word.partition("/")
    if first == "configs" and rest:
        return str(CONFIGS / rest)
    if first in ("pipeline", "finetune", "generation", "segtrain") and rest.endswith(".py"):
        return str(ROOT / word)
    return word


def _with_bases(path: Path) -> list[Path]:
    """Return a config file with the files that it builds on."""
    return [layer.path for layer in load_preset(path)] if path.suffix == ".yaml" else [path]


def _fill(text: str, values: dict[str, str], path: Path) -> str:
    """Return a text with its `{name}` fields filled in; nothing else of a format is allowed."""
    filled = ""
    try:
        for plain, name, form, conversion in string.Formatter().parse(text):
            if form or conversion:
                raise ValueError(f"{{{name}}} has a format or conversion")
            filled += plain + ("" if name is None else values[name])
            if len(filled) > LONGEST:
                raise ValueError(f"it grows longer than {LONGEST} characters")
    except (KeyError, ValueError) as error:
        known = ", ".join(f"{{{name}}}" for name in values)
        raise UserError(
            f"{path}: {text[:200]!r} cannot be filled in ({error}); known: {known}"
        ) from None
    return filled


def _reads(paths: Sequence[Path], output: Path) -> bool:
    """Tell whether a path of a command is `output`, something in it or a folder above it."""
    return any(output == p or output in p.parents or p in output.parents for p in paths if p.parts)
