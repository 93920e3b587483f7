"""Measure what a run of generation costs beside the networks: its plan and its commits.

    python benchmarks/run_overhead.py                  # about a minute

Plan: time and memory of `Planner.make_plan` for `--plan` samples, in this process. Commits: encoded
samples (512x512 images and labels) that one process writes to a dataset folder, in groups of eight
as the driver of a Ray run does; each file is synced to the disk before its row is written.
"""

import sys
import tempfile
import time
from pathlib import Path

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import psutil

from benchmarks import measure
from generation.plan import Planner
from generation.ray_workers import CHUNK
from generation.settings import Config
from pipeline import labels
from pipeline.dataset_writer import DatasetWriter, EncodedSample, encode_sample
from pipeline.errors import guard

LABEL_MAPS = 2000
SIZE_PX = 512


def make_plan(num_samples: int) -> float:
    """Return the megabytes that a plan of `num_samples` takes."""
    config = Config()
    counts = np.random.default_rng(0).integers(0, 10_000, (LABEL_MAPS, labels.NUM_CLASSES))
    planner = Planner(counts, config.prompt, seed=0, sampling=config.rare_classes)
    process = psutil.Process()
    before = process.memory_info().rss
    plan = planner.make_plan(num_samples)
    assert len(plan) == num_samples
    return (process.memory_info().rss - before) / 1e6


def encode(count: int) -> list[EncodedSample]:
    """Return `count` encoded samples of smooth images, which compress as generated ones do."""
    rng = np.random.default_rng(0)
    samples = []
    for index in range(count):
        coarse = rng.integers(0, 256, (SIZE_PX // 16, SIZE_PX // 16, 3), dtype=np.uint8)
        image = coarse.repeat(16, axis=0).repeat(16, axis=1)
        image = image + rng.integers(0, 8, image.shape, dtype=np.uint8)
        label = coarse[..., 0].repeat(16, axis=0).repeat(16, axis=1) % labels.NUM_CLASSES
        samples.append(encode_sample(index, image, label, {}))
    return samples


def commit_all(folder: Path, samples: list[EncodedSample]) -> float:
    """Return the seconds to commit samples to a new dataset folder."""
    writer = DatasetWriter(folder, config={"samples": len(samples)})
    start = time.perf_counter()
    for first in range(0, len(samples), CHUNK):
        writer.write_encoded(samples[first : first + CHUNK])
    return time.perf_counter() - start


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--plan", type=int, default=1_000_000, help="samples of the plan")
    parser.add_argument("--commits", type=int, default=400, help="samples to commit")
    arguments = parser.parse_args()
    results = measure.Results("run_overhead", "Cost of a run beside the networks", arguments)
    num_planned, count = (100, 8) if arguments.quick else (arguments.plan, arguments.commits)
    start = time.perf_counter()
    megabytes = make_plan(num_planned)
    results.add(f"plan of {num_planned} samples", time.perf_counter() - start, "s")
    results.add(f"memory of a plan of {num_planned} samples", megabytes, "MB")
    samples, numbers = encode(count), iter(range(10**6))
    num_bytes = sum(len(data) for sample in samples for _, data in sample.contents)
    with tempfile.TemporaryDirectory() as name:
        seconds = measure.in_turn(
            {"commits": lambda: commit_all(Path(name) / str(next(numbers)), samples)},
            results.repeats,
        )["commits"]
    rates = measure.Spread.of([count / value for value in seconds])
    results.add(f"commits of samples of {num_bytes / count / 1e3:.0f} kB", rates, "1/s")
    results.write()


if __name__ == "__main__":
    guard(main)
