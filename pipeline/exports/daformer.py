"""The files that DAFormer, HRDA and DGInStyle read: labels and class statistics."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.output_folders import require_writable


def write_daformer_stats(folder: Path, counts: Iterable[tuple[str, Sequence[int]]]) -> None:
    """Write the three JSONs that DAFormer, HRDA and DGInStyle sample rare classes from.

    `counts` has the name of each label below `folder` and its pixels of the 19 classes. The
    readers match samples by the last part of a name.
    """
    stats: list[dict[str, Any]] = []
    by_file: dict[str, dict[str, int]] = {}
    holders: dict[str, list[list[Any]]] = {}
    for name, class_pixels in counts:
        pixels = {str(c): int(n) for c, n in enumerate(class_pixels) if n}
        stats.append({**pixels, "file": name})
        by_file[name] = pixels
        for c, n in pixels.items():
            holders.setdefault(c, []).append([name, n])
    for stem, value in (
        ("sample_class_stats", stats),
        ("sample_class_stats_dict", by_file),
        ("samples_with_class", holders),
    ):
        files.write_changed(folder / f"{stem}.json", json.dumps(value).encode())


def write_daformer_files(
    folder: Path, rows: list[dict[str, Any]], target: Path, *, suffix: str
) -> None:
    """Write train id labels and class statistics as DAFormer's converters do, below `target`.

    `rows` are those of the prepared `folder`; the name of a label ends with `suffix`.
    """
    require_writable(target)
    counts = []
    for row in rows:
        source = Path(row["original_label"])
        stem = re.sub("_(labelIds|labelTrainIds|color)$", "", source.stem)
        name = str(source.with_name(stem + suffix))
        label, second = folder / row["label_file_name"], target / name
        same = second.is_file() and second.read_bytes() == label.read_bytes()
        if not same and (name != row["original_label"] or not second.exists()):
            files.place(label, second)
        counts.append((name, row["class_pixels"]))
    write_daformer_stats(target, counts)
