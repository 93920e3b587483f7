"""Measure the time to open a prepared dataset folder: first start (with checks), later starts.

    python benchmarks/opening.py --samples 25000 --folder /tmp/opening

Writes a dataset folder of small images and labels, with rows as pipeline/prepare.py writes them,
and opens it as every stage does before it loads weights. The folder is kept for further
measurements.
"""

import argparse
import json
import sys
import time
from pathlib import Path

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np

from benchmarks.machine import describe
from pipeline import files, images, labels
from pipeline.dataset import check_dataset, open_dataset
from pipeline.dataset_writer import SHARD_SIZE, DatasetWriter
from pipeline.errors import guard
from pipeline.rows import encode_row, sample_id, seal


def make(folder: Path, count: int) -> None:
    """Write a dataset folder of `count` samples, without syncing each file."""
    DatasetWriter(folder, config={"samples": count})
    label = np.random.default_rng(0).integers(0, labels.NUM_CLASSES, (32, 64), dtype=np.uint8)
    data = {"label": images.encode_png(label), "image": images.encode_png(np.dstack([label] * 3))}
    pixels = labels.count_classes(label).tolist()
    with open(folder / "metadata-000.jsonl", "w") as rows:
        for index in range(count):
            key = sample_id(index)
            row = {"id": key, "status": "ok", "height": 32, "width": 64}
            row |= {"class_pixels": pixels, "condition": "", "original_image": f"{index}.png"}
            for kind, content in data.items():
                name = f"{kind}s/{index // SHARD_SIZE:04d}/{key}.png"
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
                row |= {f"{kind}_file_name": name, f"{kind}_sha256": files.sha256(content)}
            rows.write(encode_row(seal(row)))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--samples", type=int, default=25_000, help="image pairs of the dataset folder"
    )
    parser.add_argument("--folder", type=Path, required=True, help="folder to write")
    parser.add_argument("--starts", type=int, default=4, help="number of starts to measure")
    arguments = parser.parse_args()
    if not arguments.folder.exists():
        make(arguments.folder, arguments.samples)
    wall, cpu = [], []
    for _ in range(arguments.starts):
        started = time.perf_counter(), time.process_time()
        samples = open_dataset(arguments.folder, labelled=True)
        check_dataset(samples)
        wall.append(round(time.perf_counter() - started[0], 2))
        cpu.append(round(time.process_time() - started[1], 2))
    result = {"samples": len(samples), "first_s": wall[0], "next_s": wall[1:], "cpu_s": cpu}
    print(json.dumps({**result, **describe("pillow", "numpy")}))


if __name__ == "__main__":
    guard(main)
