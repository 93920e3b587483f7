"""Measure what a run of generation costs beside the networks: its plan and its commits.

    python benchmarks/run_overhead.py --output /tmp/run_overhead

Plan: time and memory of `Planner.make_plan` for `--plan` samples, in this process. Commits: encoded
samples (512x512 images and labels) that one process writes to a dataset folder, in groups of eight
as the driver of a Ray run does; each file is synced to the disk before its row is written.
"""

import argparse
import json
import sys
import time
from pathlib import Path

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import psutil

from benchmarks.machine import describe
from generation.plan import Planner
from generation.ray_workers import CHUNK
from generation.settings import Config
from pipeline import labels
from pipeline.dataset_writer import DatasetWriter, EncodedSample, encode_sample
from pipeline.errors import UserError, guard

LABEL_MAPS = 2000
SIZE_PX = 512


def measure_plan(num_samples: int) -> dict[str, float]:
    """Return the seconds and the megabytes that a plan of `num_samples` takes."""
    config = Config()
    counts = np.random.default_rng(0).integers(0, 10_000, (LABEL_MAPS, labels.NUM_CLASSES))
    planner = Planner(counts, config.prompt, seed=0, sampling=config.rare_classes)
    process = psutil.Process()
    before, start = process.memory_info().rss, time.perf_counter()
    plan = planner.make_plan(num_samples)
    seconds = time.perf_counter() - start
    memory = process.memory_info().rss - before
    return {"samples": len(plan), "plan_s": round(seconds, 2), "plan_mb": round(memory / 1e6)}


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


def measure_commits(folder: Path, count: int) -> dict[str, float]:
    """Return how many samples a second are committed to a new dataset folder."""
    samples = encode(count)
    num_bytes = sum(len(data) for sample in samples for _, data in sample.contents)
    writer = DatasetWriter(folder, config={"samples": count})
    start = time.perf_counter()
    for first in range(0, count, CHUNK):
        writer.write_encoded(samples[first : first + CHUNK])
    seconds = time.perf_counter() - start
    return {"commits_per_s": round(count / seconds, 1), "sample_kb": round(num_bytes / count / 1e3)}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--plan", type=int, default=1_000_000, help="samples of the plan")
    parser.add_argument("--commits", type=int, default=400, help="samples to commit")
    parser.add_argument("--output", type=Path, required=True, help="new folder to write")
    arguments = parser.parse_args()
    if arguments.output.exists():
        raise UserError(f"--output {arguments.output}: exists; choose a new folder")
    result = measure_plan(arguments.plan) | measure_commits(arguments.output, arguments.commits)
    print(json.dumps(result | describe("numpy", "pillow")))


if __name__ == "__main__":
    guard(main)
