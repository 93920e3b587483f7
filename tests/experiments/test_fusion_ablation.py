"""Tables of the fusion ablation, from measurements written by hand."""

from pathlib import Path
from types import SimpleNamespace

from experiments import fusion_ablation
from experiments.fusion_ablation import PUBLISHED_ROW, Row


def make_row(name: str, miou: list[float], evaluations: float) -> Row:
    return Row(name, miou, [1.0, 1.0], [90.0, 92.0], evaluations, 2.0)


ROWS = [
    make_row(PUBLISHED_ROW, [30.0, 32.0], 1640.0),
    make_row("cheap", [31.0, 35.0], 82.0),
    make_row("as good, dearer", [31.0, 35.0], 100.0),
    make_row("cheapest", [20.0, 22.0], 10.0),
    make_row("worse and dearer", [19.0, 20.0], 20.0),
]


def test_a_row_off_the_frontier_is_beaten_at_no_more_evaluations():
    assert fusion_ablation.frontier(ROWS) == [False, True, True, True, False]


def test_differences_are_taken_seed_by_seed(tmp_path):
    fusion_ablation.write_tables(tmp_path / "table.md", ROWS)
    lines = (tmp_path / "table.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    assert ["cheap", "2.0 ± 1.4 (1.0 to 3.0)", "20.0"] in cells
    (published, *_) = [row for row in cells if row[0] == PUBLISHED_ROW]
    assert published[1] == "31.0 ± 1.4 (30.0 to 32.0)" and published[4:] == ["1640.0", "2.00", ""]


def test_a_row_gathers_its_seeds(monkeypatch):
    """A step without guidance costs half an evaluation."""
    images = [SimpleNamespace(row={"evaluations": 100, "seconds": 2.0})]
    monkeypatch.setattr(fusion_ablation, "open_dataset", lambda folder, labelled: images)
    first, last = fusion_ablation.default_config("pocket").guidance_interval
    unguided = sum(not first <= step / 6 < last for step in range(6))
    folders = [Path("fast_0"), Path("fast_1")]
    small = fusion_ablation.CLASS_NAMES[fusion_ablation.SMALL_CLASSES[0]]
    iou = {**dict.fromkeys(fusion_ablation.CLASS_NAMES), small: 10.0}
    targets = {"fast_0": {"miou": 30.0, "iou": iou}, "fast_1": {"miou": 32.0, "iou": iou}}
    looks = {f"/anywhere/{folder}": {"top1": 90.0} for folder in folders}
    row = fusion_ablation.read_row("DPM++ 2M 6", folders, targets, looks)
    assert (row.miou, row.looks, row.seconds) == ([30.0, 32.0], [90.0, 90.0], 2.0)
    assert row.small == [10.0 / len(fusion_ablation.SMALL_CLASSES)] * 2
    assert row.evaluations == 100 * (1 - unguided / 12)
