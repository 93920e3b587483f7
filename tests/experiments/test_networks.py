"""The table of pocket_networks, from comparisons written by hand."""

import json

import pytest

from experiments import networks
from pipeline.errors import UserError

COLUMNS = ("Avg5", "acdc", "dark_zurich", "dev")


def write(folder, name, base, gains, columns=COLUMNS):
    def cells(mean, difference=None):
        more = {} if difference is None else {"difference": difference, "p": 0.01}
        return {"columns": {c: {"mean": mean, "deviation": 0.5, **more} for c in columns}}

    arms = {"source_only": cells(base)}
    arms |= {one: cells(base + d, d) for one, d in zip(networks.SETS, gains, strict=True)}
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({"arms": arms}))


def call(monkeypatch, capsys, folder):
    monkeypatch.setattr("sys.argv", ["networks.py", "--tables", str(folder)])
    networks.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line[:1] == "|"]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return [row for row in rows if row[0] in ("weak", "strong")]


def test_networks_stand_in_the_order_of_their_strength(tmp_path, monkeypatch, capsys):
    tables = tmp_path / "tables"
    write(tables, "strong", 40.0, (1.0, 2.0))
    write(tables, "weak", 20.0, (3.0, 6.5))
    write(tables, "weak_photographs", 15.0, (-1.0, 4.0), ("camvid_test", "mean"))
    (tables / "other.json").write_text('{"arms": {"a": {"columns": {}}}}')
    weak, strong, photographs = call(monkeypatch, capsys, tables)
    assert [weak[0], strong[0], photographs[0]] == ["weak", "strong", "weak"]
    assert weak[1] == "20.0 ± 0.5" and weak[2] == "+3.0 (p 0.010)" and weak[6] == "+6.5 (p 0.010)"
    assert photographs[1:] == ["15.0 ± 0.5", "-1.0 (p 0.010)", "+4.0 (p 0.010)"]


def test_a_baseline_that_is_low_by_chance_does_not_set_the_order(tmp_path, monkeypatch, capsys):
    write(tmp_path, "strong", 29.0, (3.0, 5.0))
    write(tmp_path, "weak", 30.0, (0.0, 1.0))
    weak, strong = call(monkeypatch, capsys, tmp_path)
    assert [weak[0], strong[0]] == ["weak", "strong"]


def test_a_folder_without_comparisons_is_named(tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match="run the recipe pocket_networks first"):
        call(monkeypatch, capsys, tmp_path)
