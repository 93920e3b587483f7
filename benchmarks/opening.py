"""Measure the time to open and to verify a prepared dataset folder.

    python benchmarks/opening.py                       # 2,000 samples
    python benchmarks/opening.py --full                # 50,000 samples

Writes a dataset folder of small images and labels, with rows as pipeline/prepare.py writes them.
Opens it as every stage does before it loads weights, at the first start, which reads every file,
and at later ones; then `pipeline/verify.py` reads and decodes all of it.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np

from benchmarks import measure
from pipeline import files, images, labels
from pipeline.dataset import check_dataset, open_dataset
from pipeline.dataset_writer import SHARD_SIZE, DatasetWriter
from pipeline.errors import guard
from pipeline.rows import encode_row, sample_id, seal

ROOT = Path(__file__).resolve().parent.parent


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


def open_and_check(folder: Path) -> None:
    """Open a folder as every stage does."""
    check_dataset(open_dataset(folder, labelled=True))


def verify(folder: Path) -> None:
    """Run pipeline/verify.py."""
    command = [sys.executable, "pipeline/verify.py", "--data", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--full", action="store_true", help="50,000 samples in place of 2,000")
    arguments = parser.parse_args()
    results = measure.Results("opening", "Opening and verifying a prepared set", arguments)
    count = 20 if arguments.quick else 50_000 if arguments.full else 2000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "set"
        make(folder, count)
        start = time.perf_counter()
        open_and_check(folder)
        results.add(f"first start, {count} samples", time.perf_counter() - start, "s")
        calls = {"start": lambda: open_and_check(folder), "verify": lambda: verify(folder)}
        seconds = measure.in_turn(calls, results.repeats, warm_up=False)
    results.add(f"later starts, {count} samples", measure.Spread.of(seconds["start"]), "s")
    results.add(f"verify, {count} samples", measure.Spread.of(seconds["verify"]), "s")
    results.details["seconds"] = seconds
    results.write()


if __name__ == "__main__":
    guard(main)
