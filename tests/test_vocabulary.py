"""Texts for users avoid the words that the table in CONTRIBUTING.md replaces.

Texts are the pages, the headers and comments of configs and datasets, and what --help is made of:
docstrings of programs, texts under settings and `help=` of flags. They are read from the source.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CODE = ("pipeline", "finetune", "generation", "segtrain", "benchmarks", "experiments")
HEADING = "### Words"
EXCEPTIONS = {
    ("CONTRIBUTING.md", "*"): "the table itself",
}


@cache
def words() -> dict[str, str]:
    """Return the words of the table in CONTRIBUTING.md and what to use in their place."""
    part = (ROOT / "CONTRIBUTING.md").read_text().partition(f"{HEADING}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (?!not|---)([^|]+?) \| ([^|]+?) \|$", part, re.M)
    return {word.strip(): use for left, use in rows for word in left.split(",")}


def comments(source: str) -> str:
    """Return the comments of Python source, one per line."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return "\n".join(token.string for token in tokens if token.type == tokenize.COMMENT)


def help_texts(tree: ast.Module) -> Iterator[str]:
    """Yield the docstring of a module, the texts under settings, and `help=` of flags."""
    yield ast.get_docstring(tree) or ""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for setting, text in zip(node.body, node.body[1:], strict=False):
                if isinstance(setting, ast.AnnAssign) and isinstance(text, ast.Expr):
                    yield ast.unparse(text)
        elif isinstance(node, ast.keyword) and node.arg == "help":
            yield ast.unparse(node.value)


def texts() -> Iterator[tuple[str, str]]:
    """Yield (path, text) of everything that a user reads."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    for folder in (*CODE, "datasets"):
        pages += (ROOT / folder).rglob("*.md")
    for path in pages:
        yield path.relative_to(ROOT).as_posix(), path.read_text()
    for folder in ("configs", "datasets"):
        for path in (ROOT / folder).rglob("*.yaml"):
            lines = re.findall(r"#.*|^ *about:.*", path.read_text(), re.M)
            yield path.relative_to(ROOT).as_posix(), "\n".join(lines)
    for path in (ROOT / "configs").rglob("*.py"):
        source = path.read_text()
        text = f"{ast.get_docstring(ast.parse(source))}\n{comments(source)}"
        yield path.relative_to(ROOT).as_posix(), text
    for folder in CODE:
        for path in (ROOT / folder).rglob("*.py"):
            source = path.read_text()
            if "guard(main)" in source or path.name in ("settings.py", "options.py"):
                text = "\n".join(help_texts(ast.parse(source)))
                yield path.relative_to(ROOT).as_posix(), text


def test_the_table_is_read() -> None:
    assert words()["picture"] == "image" and len(words()) > 5


@pytest.mark.parametrize(
    ("text", "found"),
    [("two Pictures of it", True), ("the picturesque", False), ("held-out images", False)],
)
def test_words_are_found_whole_and_in_the_plural(text: str, found: bool) -> None:
    assert bool(offences(text)) == found


def offences(text: str) -> list[str]:
    """Return `word: use` of every replaced word in a text, code of it included."""
    return [
        f"{match[0]}: use {use}"
        for word, use in words().items()
        for match in re.finditer(
            rf"(?<![\w/.-]){re.escape(word)}s?(?![\w/.-])", text, re.IGNORECASE
        )
    ]


def test_texts_for_users_use_the_words_of_the_field() -> None:
    bad = {
        path: found
        for path, text in texts()
        if (path, "*") not in EXCEPTIONS and (found := offences(text))
    }
    assert not bad, "\n".join(f"{path}: {'; '.join(found)}" for path, found in bad.items())
