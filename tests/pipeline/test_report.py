"""The report is one safe page, also of an unfinished run."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline import labels, report, sample_views
from pipeline.dataset import open_dataset, read_pair
from pipeline.dataset_writer import DatasetWriter
from pipeline.errors import UserError
from pipeline.reporting import scores as report_scores

ARMS = {"source_generated": 41.0, "source_only": 33.0}


def scores() -> dict:
    def entry(value: float) -> dict:
        iou = dict.fromkeys(labels.CLASS_NAMES, value) | {"train": None}
        return {"miou": value, "iou": iou, "images": 4}

    checkpoints = []
    for name, value in ARMS.items():
        targets = {"cityscapes": entry(value), "acdc": entry(value - 10)}
        targets["acdc"]["conditions"] = {"fog": entry(value - 5), "night": entry(value - 15)}
        checkpoints.append({"name": name, "targets": targets, "mean_miou": value - 5})
    return {"targets": ["cityscapes", "acdc"], "checkpoints": checkpoints}


@pytest.fixture
def workspace(tmp_path: Path, tiny_dataset: Callable[..., Path]) -> Path:
    source = tiny_dataset(4, 64, 128, folder=tmp_path / "data" / "source")
    tiny_dataset(2, 64, 128, folder=tmp_path / "data" / "targets" / "acdc", conditions=("fog",))
    for name in ("generated", "variants/recolored", "variants/no_fusion", "variants/no_swap"):
        writer = DatasetWriter(tmp_path / name, config={"name": name})
        for index, sample in enumerate(open_dataset(source, labelled=True)):
            image, label = read_pair(sample)
            row = {
                "condition": ("fog", "night")[index % 2],
                "prompt": "a street <script>alert(1)</script>",
                "source_label": sample.row["label_file_name"],
            }
            writer.write(index, 255 - image, label, row)
    (tmp_path / "scores.json").write_text(json.dumps(scores()))
    stage = {"seconds": 61.5, "peak_mb": 900, "finished_at": "now", "command": "python a.py"}
    (tmp_path / "timings.json").write_text(json.dumps({"stages": {"first": stage}}))
    return tmp_path


def test_full_report_is_self_contained_and_escaped(workspace: Path, run_program) -> None:
    run_program("pipeline/report.py", "--workspace", workspace)
    page = (workspace / "report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:|#)""", page)
    assert "Not in this workspace yet: the same" not in page
    expected = ("+8.0", "41.0", "fog", "night", "with fusion", "without Style Swap", "61.5")
    for text in (*expected, "recoloured source image"):
        assert text in page, text
    assert len(page) < 15_000_000


def test_empty_workspace_gives_a_page_of_notes(tmp_path: Path) -> None:
    page = report.render(report.gather(tmp_path, 2))
    assert page.count("Not in this workspace yet") == 8, page


@pytest.mark.parametrize("color_transfer", ["source", "none"])
def test_recoloured_source_images_are_not_called_generated(
    workspace: Path, color_transfer: str
) -> None:
    record = json.loads((workspace / "generated" / "run.json").read_text())
    record["config"] = {"color_transfer": color_transfer, "models": {}}
    (workspace / "generated" / "run.json").write_text(json.dumps(record))
    page = report.render(report.gather(workspace, 2))
    words = ("source + recoloured source", "points from recoloured source images",
             "source images in generated colours", "colour transfer")  # fmt: skip
    generated = (
        "source + generated",
        "points from generated images",
        "labelled images generated",
    )
    for text in words:
        assert (text in page) == (color_transfer == "source"), text
    for text in generated:
        assert (text in page) == (color_transfer != "source"), text


def test_missing_workspace_is_one_line(tmp_path: Path, run_program) -> None:
    done = run_program("pipeline/report.py", "--workspace", tmp_path / "none", check=False)
    assert done.returncode == 2 and "no such folder" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_table_puts_the_baseline_first_and_conditions_below_their_target(workspace: Path) -> None:
    found = report_scores.read_scores(workspace / "scores.json")
    assert list(found) == ["source_only", "source_generated"]
    rows = report_scores.table(found)
    assert [(r.name, r.level) for r in rows] == [
        ("cityscapes", 0),
        ("acdc", 0),
        ("fog", 1),
        ("night", 1),
        ("mean", 0),
    ]
    assert rows[0].cells[0].delta is None and rows[0].cells[1].delta == pytest.approx(8)
    assert "train" not in report_scores.mean_class_iou(found["source_only"])


def test_source_image_follows_the_crop(workspace: Path) -> None:
    sample = open_dataset(workspace / "generated", labelled=True)[0]
    crop = [8, 16, 32, 64]  # top, left, height, width
    moved = type(sample)(sample.id, sample.image, sample.label, {**sample.row, "crop": crop})
    whole = sample_views.source_image(sample, workspace / "data" / "source")
    part = sample_views.source_image(moved, workspace / "data" / "source")
    assert whole is not None and np.array_equal(part, whole[8:40, 16:80])


def test_close_up_window_lies_on_the_small_objects() -> None:
    label = np.zeros((64, 128), dtype=np.uint8)
    label[30:50, 90:96] = 11
    corner = sample_views.small_object_window(label, 40)
    assert corner is not None
    top, left = corner
    assert top <= 30 and top + 40 >= 50 and left <= 90 and left + 40 >= 96
    assert sample_views.small_object_window(np.zeros((64, 128), np.uint8), 40) is None


@pytest.mark.parametrize("entries", [True, 3, "ab", {"name": "a"}, [], None, [True]])
def test_scores_that_are_no_list_are_one_line(tmp_path: Path, entries: object) -> None:
    (tmp_path / "scores.json").write_text(json.dumps({"targets": ["a"], "checkpoints": entries}))
    with pytest.raises(UserError, match="is not what segtrain/score.py writes"):
        report_scores.read_scores(tmp_path / "scores.json")
