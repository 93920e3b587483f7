"""A damaged generated set: verify withdraws the bad samples, the run draws exactly those again."""

import sys
from pathlib import Path

import pytest

from generation import run
from pipeline import verify
from pipeline.errors import EXIT_INCOMPLETE
from pipeline.metadata import read_rows


def test_repair_generates_only_the_damaged_samples_again(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "set"

    def generate() -> None:
        monkeypatch.setattr(sys, "argv", ["run.py", *flags, "--n", "4", "--output", str(folder)])
        assert not run.main()

    def check(*more: str) -> int:
        argv = ["verify.py", "--data", str(folder), "--n", "4", *more]
        monkeypatch.setattr(sys, "argv", argv)
        return verify.main() or 0

    generate()
    paths = sorted(folder.rglob("0000000?.png"))
    sound = {path: path.read_bytes() for path in paths}
    assert len(paths) == 8 and check() == 0
    for _ in range(2):
        image, first, second = paths[0], paths[5], paths[6]
        image.write_bytes(sound[image][:200] + b"x" + sound[image][201:])
        first.write_bytes(sound[second])
        second.write_bytes(sound[first])
        times = {path: path.stat().st_mtime_ns for path in paths}
        assert check("--repair") == EXIT_INCOMPLETE
        states = {key: row["status"] for key, row in read_rows(folder).items()}
        assert list(states.values()) == ["withdrawn"] * 3 + ["ok"]
        generate()
        assert {path: path.read_bytes() for path in paths} == sound
        kept = [path for path in paths if path.stat().st_mtime_ns == times[path]]
        assert {path.stem for path in kept} == {"00000003"} and len(kept) == 2
        assert check() == 0
