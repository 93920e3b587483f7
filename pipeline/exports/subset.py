"""A small sample of a set, to look at before the download of the rest.

It is a dataset folder of plain files. Conditions take turns, so that rare ones are in it.
"""

import math
from collections.abc import Iterator
from pathlib import Path

from pipeline import files, labels
from pipeline.dataset import Sample
from pipeline.exports.job import read_checked
from pipeline.exports.shards import shard_row
from pipeline.rows import encode_row, seal
from pipeline.tar_members import file_size

LARGEST_SHARE = 0.1  # of the samples of the set: a sample is no second copy
ROW_BYTES = 4096  # what a row may take


def in_turns(samples: list[Sample]) -> Iterator[Sample]:
    """Yield samples of all conditions in turn, those of a condition spread over the set."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.condition, []).append(sample)
    most = max(map(len, groups.values()))
    for turn in range(most):
        for name in sorted(groups):
            group = groups[name]
            if turn < len(group):
                yield group[spread(turn, len(group))]


def spread(position: int, size: int) -> int:
    """Return a permutation of 0..size-1 whose beginnings lie far apart: steps of the golden ratio.

    The step is made coprime to `size`, so that every number occurs once.
    """
    step = max(1, round(size * 0.618))
    while math.gcd(step, size) > 1:
        step += 1
    return position * step % size


def choose(samples: list[Sample], max_mb: int) -> list[Sample]:
    """Return the samples of the subset in id order: at most `max_mb`, and a tenth of the set."""
    most, left = max(1, int(len(samples) * LARGEST_SHARE)), max_mb * 1_000_000
    chosen: list[Sample] = []
    for sample in in_turns(samples):
        size = ROW_BYTES + sum(file_size(p) for p in (sample.image, sample.label) if p)
        if len(chosen) == most or size > left:
            break
        chosen.append(sample)
        left -= size
    return sorted(chosen, key=lambda sample: sample.id)


def write_subset(samples: list[Sample], folder: Path) -> None:
    """Write samples as a dataset folder of plain files."""
    rows: list[str] = []
    for sample in samples:
        image = read_checked(sample, "image")
        label = read_checked(sample, "label") if sample.label else None
        names = {"image_file_name": f"images/{sample.id}{sample.image.suffix.lower()}"}
        files.write_changed(folder / names["image_file_name"], image)
        if label is not None:
            names["label_file_name"] = f"labels/{sample.id}.png"
            files.write_changed(folder / names["label_file_name"], label)
        row = {**shard_row(sample, image, label), "id": sample.id, "status": "ok", **names}
        rows.append(encode_row(seal(row)))
    files.write_changed(folder / "classes.json", files.json_bytes(labels.classes_record()))
    files.write_changed(folder / "metadata.jsonl", "".join(rows).encode())
