"""The tables of pocket_ladder: means and gains from score files written by hand."""

import json

import pytest

from experiments import ladder
from pipeline.errors import UserError
from pipeline.pocket.splits import TARGETS


def write_scores(folder, name, miou, small):
    five = {t: {"miou": miou, "iou": {"person": small, "road": 99.0}} for t in TARGETS}
    dev = {t: {"miou": miou + 1, "iou": {}} for t in ("dev", "heldout")}
    for part, targets in (("five", five), ("dev", dev)):
        path = folder / part / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"checkpoints": [{"name": name, "targets": targets}]}))


def test_gain_is_the_difference_of_the_means_of_the_seeds(tmp_path, monkeypatch, capsys):
    scores = tmp_path / "scores"
    for seed, (baseline, generated) in enumerate([(10.0, 14.0), (12.0, 18.0)]):
        write_scores(scores, f"source_only_2000_{seed}", baseline, 5.0)
        write_scores(scores, f"generated_2000_{seed}", generated, 7.0)
    write_scores(scores, "source_only_4000_0", 20.0, 6.0)
    (scores / "dev" / "generated_4000_0.json").write_text(  # scored on one part so far
        (scores / "dev" / "generated_2000_0.json").read_text()
    )
    monkeypatch.setattr("sys.argv", ["ladder.py", "--workspace", str(tmp_path)])
    ladder.main()
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    table = {(row[0], row[1]): row[2:] for row in rows}
    generated = table["2000", "generated images"]
    assert generated == ["2", "+5.0", "16.0 ± 2.8", "7.0 ± 0.0", "17.0 ± 2.8", "17.0 ± 2.8"]
    assert table["2000", "nothing (source only)"][:3] == ["2", "", "11.0 ± 1.4"]
    assert table["4000", "nothing (source only)"][2] == "20.0"
    assert ("4000", "generated images") not in table


def test_an_empty_workspace_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["ladder.py", "--workspace", str(tmp_path)])
    with pytest.raises(UserError, match="no scores of the ladder"):
        ladder.main()


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        '{"checkpoints": 3}',
        '{"checkpoints": [{}]}',
        '{"checkpoints": [{"targets": {"dev": 3}}]}',
        '{"checkpoints": [{"targets": {"dev": {"miou": "x", "iou": {}}}}]}',
        '{"checkpoints": [{"targets": {"dev": {"miou": 1.0, "iou": {}}}}]}',
        '{"checkpoints": ',
    ],
)
def test_damaged_scores_are_one_line(content, tmp_path, monkeypatch):
    path = tmp_path / "scores" / "five" / "source_only_2000_0.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    monkeypatch.setattr("sys.argv", ["ladder.py", "--workspace", str(tmp_path)])
    with pytest.raises(UserError, match="scores.*; restore it") as caught:
        ladder.main()
    assert "\n" not in str(caught.value)
