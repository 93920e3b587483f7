"""The writer of Pocket City: ranges are checked before a process is started."""

import sys
from pathlib import Path

import pytest

from pipeline import pocket_city
from pipeline.dataset import open_dataset
from pipeline.errors import UserError


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["pocket_city.py", *map(str, arguments)])
    assert not pocket_city.main()


def test_another_range_of_a_split_holds_other_scenes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(monkeypatch, "--first", 1, "--n", 2, "--size-px", 16, 32, "--workers", 1,
         "--output", tmp_path)  # fmt: skip
    assert [s.id for s in open_dataset(tmp_path, labelled=True)] == ["00000001", "00000002"]


def test_the_development_set_takes_its_conditions_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(monkeypatch, "--split", "dev", "--n", 6, "--size-px", 16, 32, "--workers", 1,
         "--output", tmp_path)  # fmt: skip
    rows = [s.row for s in open_dataset(tmp_path, labelled=True)]
    assert [r["condition"] for r in rows] == ["day", "fog", "night", "rain", "snow", "day"]
    assert [r["seed"] for r in rows] == [80_000_000 + i for i in range(6)]
    assert all("prompt" not in r for r in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--first", -1], "--first -1: must be in 0..9999600"),
        (["--first", 9_999_999, "--n", 2], "--first 9999999: must be in 0..9999998"),
        (["--n", 10_000_001], "--n 10000001: must be in 1..10000000"),
        (["--n", 0], "--n 0: must be 1 or more"),
        (["--split", "moon"], "--split moon: must be one of source"),
    ],
)
def test_ranges_outside_the_split_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[object], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        call(monkeypatch, *arguments, "--output", tmp_path / "set")
    assert "\n" not in str(caught.value) and not (tmp_path / "set").exists()
