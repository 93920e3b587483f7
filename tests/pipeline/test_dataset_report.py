"""The report of one dataset folder: any folder, with and without scores; looked at in Chromium."""

import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import labels, report, sample_views
from pipeline.dataset import open_dataset
from pipeline.dataset_writer import DatasetWriter
from pipeline.errors import UserError
from pipeline.reporting import filtering, quality, sets

CONDITIONS = ("clear", "fog", "night")


@pytest.fixture
def write(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """A function that writes the report of a folder in this process and returns the page."""

    def call(folder: Path, *flags: object) -> str:
        monkeypatch.setattr(sys, "argv", ["report.py", "--data", str(folder), *map(str, flags)])
        assert not report.main()
        return (folder / "report.html").read_text()

    return call


@pytest.fixture
def scored(tiny_dataset, add_scores, tmp_path: Path) -> Path:
    folder = tiny_dataset(12, 64, 128, conditions=CONDITIONS, folder=tmp_path / "set")
    add_scores(folder / "quality", open_dataset(folder, labelled=True))
    return folder


def test_page_of_a_scored_set(write, scored: Path, tiny_dataset) -> None:
    page = write(scored, "--source", tiny_dataset(3, 64, 128))
    assert "<script" not in page and not re.search(r"""(src|href)\s*=\s*["'](?!data:|#)""", page)
    for text in ("Worst images", "Best images", "IoU of class and condition, judge", "Fog",
                 "against the source", "No sample failed", "Images by class"):  # fmt: skip
        assert text.lower() in page.lower(), text
    assert write(scored).count("<img") > 50, "the page replaces the one that it wrote before"


def test_pages_of_folders_that_say_little(write, tiny_dataset, tmp_path: Path) -> None:
    page = write(tiny_dataset(2, 64, 128, labelled=False))
    assert page.count("<img") == 2 and "Images by class" not in page
    folder = tiny_dataset(2, 64, 128, folder=tmp_path / "hand")
    (file,) = folder.glob("metadata*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    kept = ("id", "image_file_name", "label_file_name")
    file.write_text("".join(json.dumps({k: row[k] for k in kept}) + "\n" for row in rows))
    (folder / "run.json").unlink()
    page = write(folder)
    assert "Images by class" in page and "Not scored yet" in page


def test_texts_of_others_are_escaped_and_cut(write, scored: Path) -> None:
    (file,) = scored.glob("metadata*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>" + "x" * 5000
    for row in rows[:3]:
        row.pop("row_sha256")
        row |= {"prompt": evil, "condition": evil}
    rows[3] |= {"status": "failed", "error": evil}
    rows[3].pop("row_sha256")
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = write(scored)
    assert "<script" not in page and "<img src=x" not in page


def test_damaged_files_are_left_out_and_named(write, scored: Path) -> None:
    victim = open_dataset(scored, labelled=True)[0]
    victim.image.write_bytes(victim.image.read_bytes()[:200])
    page = write(scored)
    assert "not shown here" in page and str(victim.image) in page


def test_failures_are_grouped_by_reason(tiny_dataset, tmp_path: Path) -> None:
    writer = DatasetWriter(tmp_path / "set", config={})
    for index in range(3):
        writer.write_failure(index, ("too dark", "<b>")[index // 2], {})
    rows = [json.loads(line) for line in writer.metadata.read_text().splitlines()]
    assert sets.failures(rows)[0] == {"status": "failed", "reason": "too dark", "count": 2}


def test_page_tells_what_was_dropped_and_generated_again(write, tiny_dataset, tmp_path) -> None:
    folder = tiny_dataset(4, 64, 128, conditions=("fog", "night"), folder=tmp_path / "set")
    assert "Samples by round" not in write(folder) and "Dropped pixels" not in write(folder)
    (file,) = folder.glob("metadata*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for number, row in enumerate(rows):
        dropped, changed = [0] * 19, [0] * 19
        dropped[0], changed[0] = 10 * number, 5  # of the road's 100 pixels
        row.pop("row_sha256")
        row |= {"attempt": 1, "round": number}
        row |= {"label_changes": [[100] + [0] * 18, dropped, changed]}
    rows[2] |= {"status": "withdrawn", "error": "shows too little"}
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    everything, fog, night = filtering.changes(rows)
    assert (fog["name"], fog["images"], fog["rejected"]) == ("fog", 2, 1)
    assert (fog["dropped"], fog["changed"]) == (50, 2.5), "a rejected image counts as dropped"
    assert (night["dropped"], everything["dropped"]) == (20, 35) and night["cells"][0] == 20
    assert night["cells"][1] is None
    found = filtering.rounds(rows)
    assert found["numbers"] == ["0", "1", "2", "3"]
    assert found["lines"][0] == {"name": "all", "counts": [1, 1, 0, 1], "missing": 1}
    assert found["lines"][1] == {"name": "fog", "counts": [1, 0, 0, 0], "missing": 1}
    page = write(folder)
    assert "Samples by round of the top-up" in page
    assert "Dropped pixels of class and condition" in page
    assert 'href="#filtering"' in page and "<td>50.0</td>" in page


def test_numbers_of_classes_are_those_of_the_labels(tiny_dataset) -> None:
    samples = open_dataset(tiny_dataset(5, 64, 128), labelled=True)
    truth = np.array([labels.count_classes(labels.read_label(s.label)) for s in samples])
    bare = [type(s)(s.id, s.image, s.label, {}) for s in samples]
    for given in (samples, bare):
        counted, pixels = sets.class_pixels(given)
        assert len(counted) == 5 and np.array_equal(pixels, truth)
    line = sets.histogram(truth, None)[0]["bars"][0]
    assert line["share"] == pytest.approx(truth[:, 0].sum() / truth.sum())
    assert line["images"] == (truth[:, 0] > 0).mean()


def test_ranking_and_groups_of_scores(scored: Path) -> None:
    samples = open_dataset(scored, labelled=True)
    found = quality.read_scores(scored / "quality", samples)
    assert found is not None
    best, worst = quality.ranking(found, 4)
    order = sorted(range(12), key=lambda place: found.rows[place]["fidelity"]["judge"]["miou"])
    assert worst == order[:4] and best == order[::-1][:4]
    (fog,) = [g for g in quality.groups(found, 9) if g["name"] == "fog"]
    areas = sum(np.array(found.rows[i]["fidelity"]["judge"]["areas"]) for i in range(1, 12, 3))
    road = 100 * areas[0, 0] / (areas[1, 0] + areas[2, 0] - areas[0, 0])
    assert fog["images"] == 4 and fog["networks"][0]["iou"][0] == pytest.approx(road)
    changed = scored / "images" / "0000" / "other.png"
    shutil.copy(samples[0].image, changed)
    stale = [type(s)(s.id, s.image, s.label, {**s.row, "image_sha256": "0" * 64}) for s in samples]
    assert quality.read_scores(scored / "quality", stale) is None


@pytest.mark.parametrize(
    "change",
    [{"fidelity": 3}, {"fidelity": {"judge": {"miou": "high"}}}, {"brightness": "x"},
     {"fidelity": {"judge": {"miou": 400.0, "areas": [[0] * 19] * 3}}}, {"attributes": {"a": 1}},
     {"fidelity": {"judge": {"miou": 4.0, "areas": [[0] * 18] * 3}}}],
)  # fmt: skip
def test_broken_scores_are_one_line(scored: Path, change: dict) -> None:
    path = scored / "quality" / "data.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row | change) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"data.jsonl: lacks an expected value.*score.py") as caught:
        quality.read_scores(scored / "quality", open_dataset(scored, labelled=True))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [(("--data", "none"), "none: no such folder"),
     (("--source", "."), "belong to --data"),
     (("--data", ".", "--source", "none"), "none: no such folder")],
)  # fmt: skip
def test_bad_input_is_one_line(run_program, flags: tuple[str, ...], message: str) -> None:
    done = run_program("pipeline/report.py", *flags, check=False)
    assert done.returncode == 2 and message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_small_copies_and_overlays() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    image[:, 100:] = 200
    label = np.full((100, 200), 255, np.uint8)
    label[:50] = 10
    small = sample_views.shrink(image, 20)
    assert small.shape == (10, 20, 3) and small[0, 0, 0] == 0 and small[0, -1, 0] == 200
    assert set(np.unique(sample_views.shrink(label, 20))) == {10, 255}
    mixed = sample_views.overlay(image, label)
    assert np.array_equal(mixed[50:], image[50:])
    assert mixed[0, 150].tolist() == [(200 + c + 1) // 2 for c in labels.PALETTE[10].tolist()]
    assert sample_views.spread(range(100), 4) == [0, 25, 50, 75]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_page_in_a_browser(browser, write, scored: Path, width: int, dark: bool) -> None:
    """Nothing sticks out, all images are shown, nothing is fetched, and the colours follow."""
    write(scored)
    browser.open("about:blank")  # nothing of an earlier page is counted
    browser.events.clear()
    browser.resize(width, 800, dark=dark)
    browser.open((scored / "report.html").as_uri())
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    fetched = browser.evaluate("performance.getEntriesByType('resource').map(e => e.name)")
    assert all(name.startswith("data:") for name in fetched)
    assert not [e for e in browser.events if e.get("method") == "Log.entryAdded"]
    seen = np.array(Image.open(io.BytesIO(browser.screenshot())).convert("L"))
    assert seen.shape == (800, width)
    middle = np.median(seen[400:])
    assert middle < 60 if dark else middle > 200
    assert browser.evaluate(
        "[...document.querySelectorAll('nav a')].every(a => document.querySelector(a.hash))"
    )
    texts = browser.evaluate(
        "[...document.querySelectorAll('h2, p.lead, td')].map(e => e.getBoundingClientRect())"
        ".every(r => r.width > 20)"
    )
    assert texts


@pytest.mark.slow
def test_fifty_thousand_samples(many_samples, add_scores, tiny_dataset, tmp_path, run_program):
    """At most two minutes and 20 MB, for images of full size."""
    pattern = tiny_dataset(40, 512, 1024, conditions=CONDITIONS, folder=tmp_path / "few")
    folder = many_samples(tmp_path / "many", pattern, 50_000)
    add_scores(folder / "quality", open_dataset(folder, labelled=True))
    run_program("pipeline/report.py", "--data", folder, "--source", pattern, timeout_s=120)
    assert (folder / "report.html").stat().st_size <= 20_000_000
