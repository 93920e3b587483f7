"""The class statistics that DAFormer, HRDA and DGInStyle sample rare classes from."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipeline import files


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
