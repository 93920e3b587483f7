"""Measure the cost of generation outside the networks.

    python benchmarks/engine.py                         # about two minutes on two cores
    python benchmarks/engine.py --quick --force         # that it runs

- writing: wall time of a run whose samples take a pause, with encoding and writing of 512x512
  images and labels, divided by the wall time without, in turn;
- claims: time to claim, look up and release 64 samples;
- finished: start of `generation/run.py --n 50000` on a folder that holds 50,000 rows.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import measure
from generation.samples import FinishedSample, SampleSpec
from generation.writer import WriterThread
from pipeline import files
from pipeline.claims import Claims
from pipeline.dataset_writer import DatasetWriter
from pipeline.errors import guard
from pipeline.metadata import read_rows
from pipeline.metadata_index import MetadataIndex
from pipeline.rows import sample_id

ROOT = Path(__file__).resolve().parent.parent
PAUSE_S = 0.4  # of a sample in the sampler; an H200 needs 0.6 s and more for such an image
SIZE_PX = 512


class Nowhere:
    """A writer that drops all samples."""

    process_index = 0

    def write_all(self, samples: Any) -> None:
        """Drop the samples."""


def natural_sample(index: int) -> FinishedSample:
    """Return a sample whose image compresses as generated ones do."""
    rng = np.random.default_rng(index)
    coarse = rng.integers(0, 248, (SIZE_PX // 16, SIZE_PX // 16, 3), dtype=np.uint8)
    image = coarse.repeat(16, axis=0).repeat(16, axis=1)
    image = image + rng.integers(0, 8, image.shape, dtype=np.uint8)
    label = coarse[..., 0].repeat(16, axis=0).repeat(16, axis=1) % 19
    return FinishedSample(SampleSpec(label, "a street", index, index=index), image)


def writing(results: measure.Results, folder: Path, n: int, repeats: int) -> None:
    """Measure runs of `n` samples with and without writing."""
    samples, numbers = [natural_sample(index) for index in range(n)], iter(range(10**6))

    def run(writer: Any) -> None:
        with WriterThread(writer, lambda batch: None) as saver:
            for sample in samples:
                time.sleep(PAUSE_S)
                saver.put(sample)

    calls = {
        "written": lambda: run(DatasetWriter(folder / str(next(numbers)), config={})),
        "dropped": lambda: run(Nowhere()),
    }
    seconds = measure.in_turn(calls, repeats)
    results.add(
        "wall time of a run with writing / without",
        measure.ratio(seconds, "written", "dropped"), "", "<= 1.05",
    )  # fmt: skip
    results.details["writing"] = seconds


def claiming(results: measure.Results, folder: Path, repeats: int) -> None:
    """Measure how long it takes to claim and release 64 samples."""
    (folder / "claims").mkdir(parents=True)
    rows = MetadataIndex(folder, 64)
    with Claims(folder) as claims:

        def claim_all() -> None:
            for index in range(64):
                claims.take(sample_id(index))
                rows.update()
                claims.release(sample_id(index))

        seconds = measure.in_turn({"claims": claim_all}, repeats)["claims"]
    spread = measure.Spread.of([1000 * value for value in seconds])
    results.add("claim and release of 64 samples", spread, "ms", "<= 10")


def finished(results: measure.Results, folder: Path, n: int, repeats: int) -> None:
    """Measure how long it takes to find a finished folder of `n` samples finished."""
    command = [sys.executable, "generation/run.py", "--output", str(folder), "--n"]
    subprocess.run([*command, "1"], cwd=ROOT, check=True, capture_output=True)
    (row,) = read_rows(folder).values()
    lines = [json.dumps(row | {"id": sample_id(index)}) for index in range(n)]
    files.write_bytes(folder / "metadata-000.jsonl", ("\n".join(lines) + "\n").encode())

    def start_again() -> None:
        done = subprocess.run(
            [*command, str(n)], cwd=ROOT, check=True, capture_output=True, text=True
        )
        assert "nothing to do" in done.stdout, done.stdout

    seconds = measure.in_turn({"start": start_again}, repeats, warm_up=False)["start"]
    spread = measure.Spread.of(seconds)
    results.add(f"start of a run whose {n} samples are all there", spread, "s", "<= 2")


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--rows", type=int, default=50_000, help="rows of the finished folder")
    arguments = parser.parse_args()
    results = measure.Results("engine", "Cost of generation outside the networks", arguments)
    repeats, n, rows = arguments.repeats, 10, arguments.rows
    if arguments.quick:
        repeats, n, rows = 1, 1, 20
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        writing(results, folder / "writing", n, repeats)
        claiming(results, folder / "claims", 3 * repeats)
        finished(results, folder / "finished", rows, repeats)
    results.write()


if __name__ == "__main__":
    guard(main)
