"""What tests of pipeline/verify.py and pipeline/merge.py share."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import verify


@pytest.fixture
def data(tiny_dataset: Callable[..., Path]) -> Path:
    """Four samples, the last of another process."""
    folder = tiny_dataset(4, 8, 12)
    lines = (folder / "metadata-000.jsonl").read_text().splitlines(keepends=True)
    (folder / "metadata-000.jsonl").write_text("".join(lines[:3]))
    (folder / "metadata-001.jsonl").write_text(lines[3])
    return folder


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable:
    """A function that runs verify in this process; returns exit code and lines of problems."""

    def run(folder: Path, *flags: object) -> tuple[int, list[str]]:
        argv = ["verify.py", "--data", str(folder), *map(str, flags)]
        monkeypatch.setattr(sys, "argv", argv)
        code = verify.main() or 0
        lines = capsys.readouterr().out.splitlines()
        return code, [line for line in lines if not line.startswith(f"{folder}: ")]

    return run


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def swap(first: Path, second: Path) -> None:
    """Let two files change places."""
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def both(folder: Path, template: str) -> tuple[Path, Path]:
    return folder / template.format(0), folder / template.format(1)


def rewrite(folder: Path, change: Callable[[dict], dict]) -> None:
    """Change the first row, as a program would that knows nothing of its hash."""
    path = folder / "metadata-000.jsonl"
    first, *rest = path.read_text().splitlines(keepends=True)
    path.write_text("".join([json.dumps(change(json.loads(first))) + "\n", *rest]))
