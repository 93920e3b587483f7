"""Filter and repair the labels of a scored dataset folder; the result is a dataset folder too.

    python generation/filter.py --data runs/mine/generated --preset freemask \\
        --output runs/mine/filtered

Needs what generation/score.py --costs wrote. Labels are new files, images are hard links, rows
record the changes; --data is not changed. Limits are calibrated for each class and condition, so
that a hard condition such as night is not dropped as a whole. Presets: freemask (drop pixels whose
loss is above --factor times the mean loss of their class), vote (drop pixels that show another
class, while other images of the same label map show the label's), band (drop pixels near class
boundaries that show another class), transport (give pixels the class that they show, keep the area
of each class), none (only reject images). Rejected images keep a row with the status `withdrawn`.
A filtered target stays a target.
OUTPUT/filter.md has the share of dropped pixels of each class and condition. The same command
continues a stopped run; `accelerate launch generation/filter.py ...` runs it in several processes.
"""

import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np

from generation.quality import repair, score_rows, tables
from generation.quality.filter_rules import FilterRules
from generation.quality.label_filter import LabelFilter, Scores
from generation.regeneration import RUN_OF_ORIGIN, read_record
from pipeline import files, images, label_changes, labels
from pipeline.claims import sole_writer
from pipeline.config import digest, parse, to_mapping
from pipeline.dataset import Sample, open_dataset
from pipeline.dataset_writer import SHARD_SIZE, DatasetWriter, write_card
from pipeline.errors import UserError, guard
from pipeline.identity import data_revision
from pipeline.markdown import code
from pipeline.metadata import read_rows
from pipeline.origins import kept_by_copies
from pipeline.output_entries import require_local
from pipeline.output_folders import DATASET, check_output, require_writable
from pipeline.run_records import read_run


@dataclass(frozen=True)
class Config(FilterRules):
    """Settings of one filter."""

    data: Path = Path("runs/generated")
    """Dataset folder whose labels are filtered."""
    quality: Path | None = None
    """Output folder of generation/score.py. None: `quality` in the dataset folder; required if
    --data is an address."""
    calibration: Path | None = None
    """Output folder of generation/score.py for another set, such as the one whose rejected samples
    --data replaces: limits come from its rows. None: from those of --data."""
    calibration_data: Path | None = None
    """Dataset folder that --calibration scored: only rows of samples that it has and that are not
    excluded count. None: all rows count."""
    output: Path = Path("runs/filtered")
    """Dataset folder to write."""
    segmenter: str = ""
    """Name of the segmentation network whose scores are used; may be empty if there is only one."""

    @property
    def scores(self) -> Path:
        """The folder of the scores."""
        return self.quality or self.data / "quality"


@dataclass(frozen=True)
class Inputs:
    """The samples and their scores, checked."""

    samples: list[Sample]
    scores: Scores
    calibration: Scores
    segmenter: str
    """Name of the network whose scores are used."""


def check_inputs(config: Config) -> Inputs:
    """Find bad input before anything is written; return what the filter works on."""
    config.check()
    require_local(config.scores, "--quality")
    named = {"--data": config.data, "--calibration-data": config.calibration_data}
    check_output(config.output, DATASET, inputs={k: v for k, v in named.items() if v})
    if config.calibration_data and not config.calibration:
        raise UserError("--calibration-data: needs --calibration, the scores of its samples")
    samples = open_dataset(config.data, labelled=True)
    remedy = f"run generation/score.py --data {config.data} --costs first"
    scores = scores_of(config.scores, samples, remedy)
    names = networks_of(scores)
    if config.segmenter not in names and (config.segmenter or len(names) != 1):
        known = ", ".join(names) or "none"
        raise UserError(
            f"--segmenter {config.segmenter!r}: the scores are of {known}; name one of them, or "
            f"{remedy} with --segmenters"
        )
    name, attribute = config.segmenter or names[0], config.reject_attribute
    if config.preset != "none":
        require_costs(scores, name, remedy)
    if attribute and any(attribute not in r.get("attributes", {}) for r in scores.rows.values()):
        raise UserError(f"--reject-attribute {attribute}: was not scored; see --looks of score.py")
    calibration = read_calibration(config, name) if config.calibration else scores
    require_writable(config.output)
    return Inputs(samples, scores, calibration, name)


def scores_of(folder: Path, samples: Sequence[Sample], remedy: str) -> Scores:
    """Return the scores of the samples; `UserError` if one has none of its present files."""
    rows = score_rows.current_rows(folder, "data", samples)
    if missing := [s.id for s in samples if s.id not in rows]:
        raise UserError(f"{folder}: {len(missing)} samples have no scores; {remedy}")
    return Scores(folder, rows)


def read_calibration(config: Config, segmenter: str) -> Scores:
    """Return the rows that limits come from; `UserError` unless they are of the same network."""
    assert config.calibration
    if data := config.calibration_data:
        remedy = f"run generation/score.py --data {data} first"
        scores = scores_of(config.calibration, open_dataset(data, labelled=True), remedy)
    else:
        scores = Scores(config.calibration, score_rows.all_rows(config.calibration, "data"))
    networks = [score_rows.network_of(f, segmenter) for f in (config.calibration, config.scores)]
    is_same = networks[0] is not None and networks[0] == networks[1]
    if segmenter not in networks_of(scores) or not is_same:
        raise UserError(
            f"--calibration {config.calibration}: its scores are not of the network {segmenter} "
            f"that scored {config.scores}; score both sets by one network"
        )
    if config.preset == "vote":
        require_costs(scores, segmenter, "score that set with --costs")
    return scores


def networks_of(scores: Scores) -> list[str]:
    """Return the names of the networks that scored every sample."""
    named = [{*row.get("fidelity", {})} for row in scores.rows.values()]
    return sorted(set.intersection(*named)) if named else []


def require_costs(scores: Scores, segmenter: str, remedy: str) -> None:
    """Raise `UserError` unless all rows name a file of costs."""
    if any(segmenter not in row.get("costs", {}) for row in scores.rows.values()):
        raise UserError(f"{scores.folder}: holds no costs of {segmenter}; {remedy}")


def groups_of(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Return the samples by label map, in the order of their first ones."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(str(sample.row.get("label_sha256") or sample.id), []).append(sample)
    return list(groups.values())


def run(config: Config, inputs: Inputs) -> None:
    """Write what is missing of the filtered set, in all processes; then the main one reports."""
    from pipeline import runs

    accelerator = runs.start_accelerator()
    is_main = accelerator.is_main_process
    with sole_writer(config.output) if is_main else nullcontext():
        with accelerator.main_process_first():  # the others write nothing before it is certain
            writer = DatasetWriter(
                config.output,
                config=identity_of(config, inputs),
                process_index=accelerator.process_index,
                provenance=provenance_of(config.data),
            )
        judge = LabelFilter(config, inputs.scores, inputs.calibration, inputs.segmenter)
        share = (accelerator.process_index, accelerator.num_processes)
        write_missing(inputs.samples, writer, judge, share)
        accelerator.wait_for_everyone()
        if is_main:
            write_report(config)
    runs.end(accelerator)


def identity_of(config: Config, inputs: Inputs) -> dict[str, Any]:
    """Return what makes two filters the same one."""
    paths = ("output", "quality", "calibration", "calibration_data")
    identity = {k: v for k, v in to_mapping(config).items() if k not in paths}
    if config.calibration:
        identity["calibration"] = digest(inputs.calibration.rows)
    return identity | {
        "data": data_revision(inputs.samples),
        "segmenter": inputs.segmenter,
        "network": score_rows.network_of(config.scores, inputs.segmenter),
        "scores": digest(inputs.scores.rows),
    }


def provenance_of(data: Path) -> dict[str, Any]:
    """Return what run.json says of the samples: whether they are of a target, and who made them.

    Nothing where the folder's own run.json is not readable; who made them, only if its run is one
    of ours. Raises `UserError` if classes that it names are damaged, by which samples are scored.
    """
    try:
        read_run(data)
    except UserError:
        return {}
    found = kept_by_copies(data)
    with suppress(UserError):
        found[RUN_OF_ORIGIN] = read_record(data)
    return found


def write_missing(
    samples: Sequence[Sample], writer: DatasetWriter, judge: LabelFilter, share: tuple[int, int]
) -> None:
    """Write the samples that have no row yet, those of one label map after one another.

    `share`: index and number of the processes.
    """
    from tqdm import tqdm

    index, count = share
    done = set(read_rows(writer.folder))
    shards = {sample.id: f"{i // SHARD_SIZE:04d}" for i, sample in enumerate(samples)}
    groups = groups_of(samples)[index::count]
    for group in tqdm(groups, desc="filter", unit="label map", disable=index > 0, leave=False):
        if {sample.id for sample in group} <= done:
            continue
        for sample, pair in zip(group, judge.labels_of(group), strict=True):
            if sample.id not in done:
                reason = judge.reason(sample)
                write_sample(writer, sample, shards[sample.id], *pair, reason=reason)


def write_sample(
    writer: DatasetWriter,
    sample: Sample,
    shard: str,
    before: np.ndarray,
    after: np.ndarray,
    *,
    reason: str,
) -> None:
    """Write label, image and row of a sample; of a rejected one the row alone.

    Its files are named after it: two samples may share one label map, and a row of somebody else
    may call a file like one that belongs to the folder.
    """
    row = writer.adopt(sample.row)
    row["label_changes"] = repair.changes(before, after).tolist()
    if reason:
        writer.append_row(row | {"status": "withdrawn", "error": reason})
        return
    data = images.encode_png(after)
    row["label_file_name"] = f"labels/{shard}/{sample.id}.png"
    row["image_file_name"] = f"images/{shard}/{sample.id}{sample.image.suffix}"
    files.write_bytes(writer.folder / row["label_file_name"], data)
    files.place(sample.image, writer.folder / row["image_file_name"])
    row["label_sha256"] = files.sha256(data)
    row["class_pixels"] = labels.count_classes(after).tolist()
    writer.append_row(row)


def write_report(config: Config) -> None:
    """Write and print what was dropped, in percent of pixels and images, by condition and class."""
    report = label_changes.by_condition(row for _, row in sorted(read_rows(config.output).items()))
    text = markdown_of(config, report)
    files.write_json(config.output / "filter.json", report)
    files.write_bytes(config.output / "filter.md", text.encode())
    write_card(config.output, "Filtered labels", text)
    print(text)


def markdown_of(config: Config, report: dict[str, Any]) -> str:
    """Return the report as Markdown tables."""
    head = ["images", "n", "rejected", "pixels dropped %", "given another class %"]
    keys = ("images", "rejected", "dropped", "changed")
    parts = [
        f"Labels of {code(config.data)} after {code(config.preset)}; a rejected image counts as "
        "dropped pixels.",
        tables.table(head, [[name, *(g[k] for k in keys)] for name, g in report.items()]),
    ]
    for kind, title in (("dropped", "dropped %"), ("changed", "given another class %")):
        rows = [
            [name, *(g[f"{kind}_by_class"][name] for g in report.values())]
            for name in labels.CLASS_NAMES
        ]
        parts.append(tables.table([title, *report], rows))
    return "\n\n".join(parts) + "\n"


def main() -> int | None:
    """Run the command line."""
    config, call = parse(Config, __doc__)
    inputs = check_inputs(config)
    if call.dry_run:
        print(f"would filter {len(inputs.samples)} labels by {config.preset} into {config.output}")
        return 0
    run(config, inputs)
    return 0


if __name__ == "__main__":
    guard(main)
