"""Compare scored networks: tables with seeds, paired tests on the same images, published rows.

    python segtrain/compare.py runs/mine/scores.json --published gta_mit_b5 \\
        --output runs/mine/comparison.json

Reads one or more score files of segtrain/score.py, and the counts of each image beside them.
An arm is a network with its seeds: networks whose names differ only in the number at their end.
Each arm is compared with the baseline by a paired bootstrap over images. Writes the tables as
Markdown, LaTeX and CSV (the first table) beside the JSON file.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro

from pipeline import files
from pipeline.config import parse, show
from pipeline.errors import UserError, guard
from pipeline.output_files import check_output_file, check_tables
from pipeline.output_folders import require_writable
from pipeline.reading import read_json
from pipeline.setting_checks import require_between
from segtrain.evaluation import comparison as comparing
from segtrain.evaluation.bootstrap import RESAMPLES
from segtrain.evaluation.comparison import Comparison
from segtrain.evaluation.published import Group, groups_of
from segtrain.evaluation.score_files import (
    arms_of,
    read_scores,
    require_same_images,
    score_files,
)

TABLES = {".md": "**mIoU in percent**", ".tex": "% mIoU in percent", ".csv": "mIoU %,"}
"""Their suffixes and how they begin."""


@dataclass(frozen=True)
class Config:
    """Settings of one comparison."""

    scores: tyro.conf.Positional[tuple[Path, ...]] = ()
    """JSON files of segtrain/score.py, or folders of such files."""
    output: Path = Path("comparison.json")
    """JSON file to write; the tables go beside it as .md, .tex and .csv."""
    arms: tuple[str, ...] = ()
    """Arms as NAME=PATTERN of networks, `*` for any characters. Empty: networks that differ in the
    number at the end of their names are one arm."""
    baseline: str = ""
    """Arm that the others are compared with. Empty: the first."""
    published: tuple[str, ...] = ()
    """Groups of published rows to show, from segtrain/evaluation/published.yaml."""
    resamples: int = RESAMPLES
    """Bootstrap resamples."""
    seed: int = 0
    """Seed of the resampling."""


def check(config: Config) -> tuple[Comparison, list[Group]]:
    """Read the score files and find bad input."""
    paths = score_files(config.scores)
    require_between(config, 100, 100_000, "resamples")
    check_output_file(config.output, is_comparison, "comparison")
    check_tables(config.output, TABLES, is_comparison, "comparison")
    if config.output.resolve() in [path.resolve() for path in paths]:
        raise UserError(f"--output {config.output}: is a score file; choose another --output")
    published = groups_of(config.published)
    scores = read_scores(paths)
    arms = arms_of(scores, config.arms)
    networks = [network for arm in arms.values() for network in arm]
    targets = scores.common_targets(networks)
    require_same_images(networks, targets)
    baseline = config.baseline or next(iter(arms))
    if baseline not in arms:
        raise UserError(f"--baseline {baseline}: is not an arm; known: {', '.join(arms)}")
    comparison = Comparison(scores, arms, targets, baseline, config.resamples, config.seed)
    return comparison, published


def is_comparison(path: Path) -> bool:
    """Tell whether a regular file is one that this program wrote."""
    try:
        return "arms" in read_json(path, dict)
    except UserError:
        return False


def run(config: Config, comparison: Comparison, published: list[Group]) -> None:
    """Compute, write and print."""
    require_writable(config.output.absolute().parent)
    first = comparing.main_table(comparison, published)
    others = [
        comparing.paired_table(comparison),
        comparing.condition_table(comparison),
        comparing.class_table(comparison),
    ]
    tables = [first, *(table for table in others if table.rows)]
    notes = comparing.notes_of(comparison, published)
    text = "\n\n".join([*(f"**{t.title}**\n\n{t.markdown()}" for t in tables), *notes])
    latex = "\n\n".join([*(table.latex() for table in tables), *(f"% {note}" for note in notes)])
    files.write_json(config.output, comparison.document(published))
    contents = (text, latex, first.csv().rstrip())
    for suffix, content in zip(TABLES, contents, strict=True):
        files.write_bytes(config.output.with_suffix(suffix), f"{content}\n".encode())
    print(text)


def main() -> int | None:
    """Run the command line."""
    config, call = parse(Config, __doc__)
    comparison, published = check(config)
    if call.dry_run:
        show(config)
        for arm, networks in comparison.arms.items():
            print(f"would compare {arm}: {len(networks)} networks")
        return 0
    run(config, comparison, published)
    return 0


if __name__ == "__main__":
    guard(main)
