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
OUTPUT/filter.md has the share of dropped pixels of each class and condition. The same command
continues a stopped run.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np

from generation.quality import fidelity, repair, score_rows, segmenters, tables
from pipeline import files, images, iou, labels
from pipeline.claims import sole_writer
from pipeline.config import parse, to_mapping
from pipeline.dataset import Sample, open_dataset
from pipeline.dataset_writer import SHARD_SIZE, DatasetWriter, write_card
from pipeline.errors import UserError, guard
from pipeline.identity import data_revision
from pipeline.markdown import code
from pipeline.metadata import read_rows
from pipeline.output_folders import DATASET, check_output, require_writable
from pipeline.score_rows import Row
from pipeline.setting_checks import require_between, require_positive


@dataclass(frozen=True)
class Config:
    """Settings of one filter."""

    data: Path = Path("runs/generated")
    """Dataset folder whose labels are filtered."""
    quality: Path | None = None
    """Output folder of generation/score.py. None: `quality` in the dataset folder."""
    output: Path = Path("runs/filtered")
    """Dataset folder to write."""
    segmenter: str = ""
    """Name of the segmentation network whose scores are used; may be empty if there is only one."""
    preset: Literal["freemask", "vote", "band", "transport", "none"] = "freemask"
    """Rule by which labels are filtered or repaired, see above."""
    factor: float = 1.25
    """freemask: pixels above this multiple of the mean loss of class and condition are dropped."""
    min_pixels: int = 10_000
    """A class with fewer pixels in a condition is calibrated over all conditions."""
    vote_share: float = 0.5
    """vote: share of the images of a label map that must show the label's class."""
    band_share: float = 0.01
    """band: width of the band, as a share of the image's diagonal."""
    stay: float = 2.0
    """transport: nats by which a pixel prefers the class that its label names."""
    temperature: float = 0.1
    """transport: temperature of the assignment, nats."""
    reject_below: float = 0.0
    """Reject an image whose pixel accuracy is below this share of the accuracy expected for its
    classes in its condition; 0 rejects none."""
    reject_attribute: str = ""
    """Reject an image whose classified value of this attribute, such as `condition`, differs from
    its row."""

    @property
    def scores(self) -> Path:
        """The folder of the scores."""
        return self.quality or self.data / "quality"


def check(config: Config) -> tuple[list[Sample], dict[str, Row], str]:
    """Find bad input before anything is written; return samples, their scores, the network."""
    require_positive(config, "factor", "temperature", "min_pixels")
    require_between(config, 0, 1, "vote_share", "reject_below")
    require_between(config, 0, 0.25, "band_share")
    require_between(config, 0, 100, "stay")
    check_output(config.output, DATASET, inputs={"--data": config.data})
    samples = open_dataset(config.data, labelled=True)
    rows = score_rows.current_rows(config.scores, "data", samples)
    remedy = f"run generation/score.py --data {config.data} --costs first"
    if missing := [s.id for s in samples if s.id not in rows]:
        raise UserError(f"{config.scores}: {len(missing)} samples have no scores; {remedy}")
    names = sorted(set.intersection(*({*row.get("fidelity", {})} for row in rows.values())))
    if config.segmenter not in names and (config.segmenter or len(names) != 1):
        known = ", ".join(names) or "none"
        raise UserError(
            f"--segmenter {config.segmenter!r}: the scores are of {known}; name one of them, or "
            f"{remedy} with --segmenters"
        )
    name, attribute = config.segmenter or names[0], config.reject_attribute
    if config.preset != "none" and any(name not in r.get("costs", {}) for r in rows.values()):
        raise UserError(f"{config.scores}: holds no costs of {name}; {remedy}")
    if attribute and any(attribute not in r.get("attributes", {}) for r in rows.values()):
        raise UserError(f"--reject-attribute {attribute}: was not scored; see --looks of score.py")
    require_writable(config.output)
    return samples, rows, name


class Filter:
    """The filter, calibrated on all rows."""

    def __init__(self, config: Config, rows: dict[str, Row], segmenter: str) -> None:
        self.config, self.rows, self.segmenter = config, rows, segmenter
        self.losses, self.recalls = repair.mean_losses(
            list(rows.values()), segmenter, config.min_pixels
        )

    def reason(self, sample: Sample) -> str:
        """Return why an image is rejected, nothing if it is not."""
        config, row = self.config, self.rows[sample.id]
        score = repair.relative_score(row, self.segmenter, self.recalls)
        if score < config.reject_below:
            return f"shows {score:.2f} of what is usual, less than {config.reject_below:g}"
        if attribute := config.reject_attribute:
            said, seen = sample.row.get(attribute), row["attributes"][attribute]["seen"]
            if said is not None and str(said) != seen:
                return f"its {attribute} looks like {seen}"
        return ""

    def labels_of(self, group: Sequence[Sample]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the label HxW before and after of each sample of one label map."""
        before = [labels.read_label(s.label) for s in group if s.label is not None]
        if self.config.preset == "none":
            return [(label, label) for label in before]
        if self.config.preset == "vote":
            for sample, label in zip(group, before, strict=True):
                if not np.array_equal(label, before[0]):
                    raise UserError(
                        f"{sample.label}: is not the label map of {group[0].label}, though its "
                        "row says so by label_sha256; see pipeline/verify.py --repair"
                    )
            seen = [self._costs(s, label).argmin(0) for s, label in zip(group, before, strict=True)]
            after = repair.drop_outvoted(before[0], seen, self.config.vote_share)
        else:
            after = [self._repaired(s, label) for s, label in zip(group, before, strict=True)]
        return list(zip(before, after, strict=True))

    def _costs(self, sample: Sample, label: np.ndarray) -> np.ndarray:
        path = self.config.scores / self.rows[sample.id]["costs"][self.segmenter]
        height, width = label.shape
        return segmenters.decode_costs(path, (height, width))

    def _repaired(self, sample: Sample, label: np.ndarray) -> np.ndarray:
        config, costs = self.config, self._costs(sample, label)
        if config.preset == "band":
            height, width = label.shape
            width_px = fidelity.band_px(height, width, config.band_share)
            return repair.drop_band(label, costs, width_px)
        if config.preset == "transport":
            stay, temperature = config.stay, config.temperature
            return repair.transport(label, costs, stay=stay, temperature=temperature)
        limits = config.factor * self.losses[self.rows[sample.id]["condition"]]
        return repair.drop_hard(label, costs, limits)


def groups_of(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Return the samples by label map, in the order of their first ones."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(str(sample.row.get("label_sha256") or sample.id), []).append(sample)
    return list(groups.values())


def run(config: Config, samples: list[Sample], rows: dict[str, Row], segmenter: str) -> None:
    """Write what is missing of the filtered set, then the report."""
    identity = {k: v for k, v in to_mapping(config).items() if k not in ("output", "quality")}
    identity |= {"data": data_revision(samples), "segmenter": segmenter}
    writer = DatasetWriter(config.output, config=identity)
    judge = Filter(config, rows, segmenter)
    with sole_writer(config.output):
        write_missing(config, samples, writer, judge)
    report = report_of(config.output, rows)
    text = markdown_of(config, report)
    files.write_json(config.output / "filter.json", report)
    files.write_bytes(config.output / "filter.md", text.encode())
    write_card(config.output, "Filtered labels", text)
    print(text)


def write_missing(
    config: Config, samples: list[Sample], writer: DatasetWriter, judge: Filter
) -> None:
    """Write the samples that have no row yet, those of one label map after one another."""
    from tqdm import tqdm

    done = set(read_rows(config.output))
    shards = {sample.id: f"{i // SHARD_SIZE:04d}" for i, sample in enumerate(samples)}
    for group in tqdm(groups_of(samples), desc="filter", unit="label map", leave=False):
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
    row = {"status": "ok"} | {k: v for k, v in sample.row.items() if k != "row_sha256"}
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


def report_of(folder: Path, scores: dict[str, Row]) -> dict[str, Any]:
    """Return what fell, in percent of pixels and images, by condition and class."""
    groups: dict[str, list[Row]] = {"all": []}
    for key, row in sorted(read_rows(folder).items()):
        if key in scores:
            groups["all"].append(row)
            groups.setdefault(scores[key]["condition"], []).append(row)
    return {name: _group(rows) for name, rows in groups.items()}


def _group(rows: Sequence[Row]) -> dict[str, Any]:
    rejected = [row["status"] == "withdrawn" for row in rows]
    changed = np.array([row["label_changes"] for row in rows])
    lost = changed[:, 1].copy()
    lost[rejected] = changed[rejected, 0]
    other = changed[:, 2].copy()
    other[rejected] = 0
    whole = changed[:, 0].sum(0)

    def percent(part: np.ndarray) -> dict[str, float | None]:
        shares = zip(labels.CLASS_NAMES, part.sum(0), whole, strict=True)
        return {name: fidelity.rounded(iou.percent(a, b)) for name, a, b in shares}

    return {
        "images": len(rows),
        "rejected": sum(rejected),
        "dropped": fidelity.rounded(iou.percent(lost.sum(), whole.sum())),
        "changed": fidelity.rounded(iou.percent(other.sum(), whole.sum())),
        "dropped_by_class": percent(lost),
        "changed_by_class": percent(other),
    }


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
    samples, rows, segmenter = check(config)
    if call.dry_run:
        print(f"would filter {len(samples)} labels by {config.preset} into {config.output}")
        return 0
    run(config, samples, rows, segmenter)
    return 0


if __name__ == "__main__":
    guard(main)
