"""Stress test: does a generated set rank networks as labelled targets do, condition by condition?

    python segtrain/stress_test.py runs/stress/generated.json runs/stress/targets.json \\
        --generated night_set --output runs/stress/correlation.json

Reads score files of segtrain/score.py, which scores any network on a generated set as on any
labelled folder: networks of ours, of transformers, of mmsegmentation (segtrain/import_network.py),
or predictions. Reports the correlation, over networks, of the scores on the generated set and its
conditions with those on the targets and theirs. Eight networks or more make a result.
"""

import sys
from dataclasses import asdict, dataclass
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
from segtrain.evaluation import correlation
from segtrain.evaluation.score_files import (
    Network,
    Scores,
    read_scores,
    require_same_images,
    score_files,
)
from segtrain.evaluation.score_tables import selection_notes

TABLES = {".md": "| generated with target", ".csv": "mIoU %,"}
"""Their suffixes and how they begin."""
FEWEST = 3  # of which a correlation can be computed


@dataclass(frozen=True)
class Config:
    """Settings of one stress test."""

    scores: tyro.conf.Positional[tuple[Path, ...]] = ()
    """JSON files of segtrain/score.py, or folders of such files, with the generated sets and the
    targets of all networks."""
    generated: tuple[str, ...] = ()
    """Names of the generated sets in the score files; all other sets are targets."""
    output: Path = Path("stress_test.json")
    """JSON file to write; the tables go beside it as .md and .csv (all scores)."""


@dataclass(frozen=True)
class Plan:
    """What was read."""

    scores: Scores
    networks: list[Network]
    generated: list[str]
    targets: list[str]


def check(config: Config) -> Plan:
    """Read the score files and find bad input."""
    paths = score_files(config.scores)
    check_output_file(config.output, is_stress_test, "stress test")
    check_tables(config.output, TABLES, is_stress_test, "stress test")
    scores = read_scores(paths)
    if not config.generated or not set(config.generated) <= set(scores.classes):
        known = ", ".join(scores.classes)
        raise UserError(f"--generated: name at least one set of the score files, of {known}")
    complete = [n for n in scores.networks.values() if set(n.images) == set(scores.classes)]
    for network in scores.networks.values():
        if network not in complete:
            print(f"notice: {network.name}: left out, not scored on all sets", file=sys.stderr)
    if len(complete) < FEWEST:
        raise UserError(
            f"{len(complete)} networks were scored on all sets, and a correlation needs {FEWEST}; "
            f"score more of them, {correlation.ENOUGH} or more to report it"
        )
    targets = [name for name in scores.classes if name not in config.generated]
    if not targets:
        raise UserError("--generated: leaves no target; give score files with labelled targets")
    require_same_images(complete, list(scores.classes))
    return Plan(scores, complete, list(config.generated), targets)


def is_stress_test(path: Path) -> bool:
    """Tell whether a regular file is one that this program wrote."""
    try:
        return "correlations" in read_json(path, dict)
    except UserError:
        return False


def run(config: Config, plan: Plan) -> None:
    """Compute, write and print."""
    require_writable(config.output.absolute().parent)
    parts = (plan.scores, plan.networks, plan.generated, plan.targets)
    found = correlation.correlations(*parts)
    table, scored = correlation.correlation_table(found), correlation.scores_table(*parts)
    selection = {network.name: network.selection for network in plan.networks}
    notes = [
        *selection_notes(selection),
        *correlation.notes_of(len(plan.networks)),
        *plan.scores.marks,
    ]
    both = [*plan.generated, *plan.targets]
    document = {
        "networks": {
            n.name: correlation.network_columns(plan.scores, n, both) for n in plan.networks
        },
        "selection": selection,
        "generated": plan.generated,
        "targets": plan.targets,
        "enough": len(plan.networks) >= correlation.ENOUGH,
        "correlations": {
            column: {other: asdict(one) for other, one in others.items()}
            for column, others in found.items()
        },
    }
    text = "\n\n".join([table.markdown(), scored.markdown(), *notes])
    files.write_json(config.output, document)
    files.write_bytes(config.output.with_suffix(".md"), f"{text}\n".encode())
    files.write_bytes(config.output.with_suffix(".csv"), scored.csv().encode())
    print(text)


def main() -> int | None:
    """Run the command line."""
    config, call = parse(Config, __doc__)
    plan = check(config)
    if call.dry_run:
        show(config)
        print(f"would correlate {len(plan.networks)} networks")
        return 0
    run(config, plan)
    return 0


if __name__ == "__main__":
    guard(main)
