"""The sections of one dataset folder, as its template shows them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import marks
from pipeline.dataset import Sample
from pipeline.metadata import read_rows
from pipeline.reporting import filtering, quality, sets
from pipeline.reporting.images import samples_of
from pipeline.reporting.sheets import Sheets

RANKED = 12  # best and worst images
PER_CLASS = 6
MOST_PROBLEMS = 20

Row = dict[str, Any]


def sections(
    folder: Path,
    samples: Sequence[Sample],
    *,
    source: Path | None,
    scores: Path,
    per_condition: int,
    what: str,
) -> Row:
    """Collect what the page shows of a dataset folder.

    `source`: dataset folder whose label maps the samples were generated from, None if unknown.
    `scores`: output folder of generation/score.py, which need not exist. `what`: its images in
    words.
    """
    found = quality.read_scores(scores, samples)
    sheets = Sheets(source)
    counted, pixels = sets.class_pixels(samples)
    of_source = sets.class_pixels(samples_of(source))[1] if source else None
    rows = list(read_rows(folder).values())
    page: Row = {
        "what": what,
        "total": len(samples),
        "counted": len(counted),
        "labelled": bool(counted),
        "conditions": sheets.conditions(samples, per_condition),
        "classes": sheets.classes(counted, pixels, PER_CLASS) if counted else [],
        "histogram": sets.histogram(pixels, of_source) if counted else [],
        "occurrence": sets.occurrence(counted, pixels) if counted else [],
        "scores": score_section(found, sheets) if found else None,
        "filtering": filtering.section(rows),
        "failures": sets.failures(rows) + excluded(folder),
        "timings": sets.timings(samples),
        "provenance": sets.provenance(folder, samples),
    }
    page["has_histogram_of_source"] = of_source is not None and len(of_source) > 0
    page["has_source"] = any(len(row) == 3 for _, rows in page["conditions"] for row in rows)
    page["problems"] = sorted(set(sheets.problems))[:MOST_PROBLEMS]
    return page


def excluded(folder: Path) -> list[Row]:
    """Return the line of the samples that a person left out."""
    count = len(marks.excluded_ids(folder))
    reason = f"by a person, see {marks.NAME}"
    return [{"status": "excluded", "reason": reason, "count": count}] if count else []


def score_section(scores: quality.Scores, sheets: Sheets) -> Row:
    """Collect what the page shows of the scores of a dataset folder."""
    best, worst = quality.ranking(scores, RANKED)
    ranked = []
    for title, lead, positions in (
        ("Worst images", "What the networks recognise least of the label map.", worst),
        ("Best images", "What the networks recognise best of the label map.", best),
    ):
        chosen = [scores.samples[position] for position in positions]
        texts = [quality.caption(scores, position) for position in positions]
        if rows := sheets.ranked(chosen, texts):
            order = "Image, image under its label, and small objects, both ways."
            ranked.append((title, f"{lead} {order}", rows))
    attributes = {name for row in scores.rows for name in row.get("attributes", {})}
    return {
        "count": len(scores.samples),
        "networks": scores.networks,
        "distribution": quality.distribution(scores),
        "groups": quality.groups(scores, sets.MOST_ROWS),
        "attributes": sorted(attributes),
        "distances": quality.distances(scores.summary),
        "ranked": ranked,
    }
