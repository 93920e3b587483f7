"""Commands at the head of configs, programs of segtrain and scripts: their flags exist."""

import ast
import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config import parse

ROOT = Path(__file__).resolve().parent.parent
FILES = [
    path.relative_to(ROOT)
    for pattern in ("configs/**/*.py", "configs/**/*.yaml", "segtrain/*.py", "scripts/**/*.sh")
    for path in sorted(ROOT.glob(pattern))
]


def header(path: Path) -> str:
    """Return the docstring of a Python file, or the comments of another one."""
    text = (ROOT / path).read_text()
    if path.suffix == ".py":
        return ast.get_docstring(ast.parse(text)) or ""
    return "\n".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield program and options of each command; options in brackets are included."""
    joined = re.sub(r"\\\n\s*", " ", text)
    for line in re.findall(r"^\s*(?:accelerate launch|python) (.*)", joined, re.M):
        line = re.sub(r"  +\(.*| {4,}.*|[][]", "", line)  # remarks, brackets
        words = shlex.split(line, comments=True)
        for index, word in enumerate(words):
            if word.endswith(".py") and (ROOT / word).is_file():
                yield word, words[index + 1 :]
                break


@pytest.mark.parametrize("path", FILES, ids=str)
def test_commands_at_the_head_of_a_file_parse(path: Path, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    for program, options in commands(header(path)):
        module = importlib.import_module(program.removesuffix(".py").replace("/", "."))
        if hasattr(module, "Config"):
            monkeypatch.setattr(sys, "argv", [program, *options])
            parse(module.Config, module.__doc__)
