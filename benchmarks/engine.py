"""Measure the cost of generation outside the networks.

    python benchmarks/engine.py --output runs/engine.json          # about five minutes on two cores

- writing: wall time of generation with the pocket model with writing (encode, sync, record),
  divided by the wall time without writing, in turn;
- claims: time to claim, look up and release 64 samples;
- processes: samples per second of two processes of one thread each, divided by one process, from
  the times of their rows; the first sample of a process is a warm-up and does not count;
- finished: start of `generation/run.py --n 50000` on a folder that holds 50,000 rows.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.machine import describe
from generation.inputs import read_inputs
from generation.sampler.networks import load_networks
from generation.sampler.sampler import Sampler
from generation.settings import default_config
from generation.worker import SampleMaker
from generation.writer import WriterThread
from pipeline import files
from pipeline.claims import Claims
from pipeline.dataset_writer import DatasetWriter
from pipeline.errors import guard
from pipeline.metadata import MetadataIndex, read_rows
from pipeline.rows import sample_id

ROOT = Path(__file__).resolve().parent.parent


class Nowhere:
    """A writer that drops all samples."""

    def write_all(self, samples: Any) -> None:
        """Drop the sample."""


def writing(folder: Path, n: int, repeats: int) -> dict[str, Any]:
    """Return the wall time to generate `n` samples with writing, divided by that without."""
    config = dataclasses.replace(default_config("pocket"), n=n, output=folder / "inputs")
    inputs = read_inputs(config)
    sampler = Sampler(load_networks(config, torch.device("cpu")), config)
    maker = SampleMaker(sampler, inputs.specs)
    maker.make(inputs.plan[:1])[0].result()
    seconds: dict[str, list[float]] = {"written": [], "dropped": []}
    for repeat in range(repeats):
        for kind in seconds:
            target = DatasetWriter(folder / f"{kind}{repeat}", config={})
            start = time.perf_counter()
            with WriterThread(
                target if kind == "written" else Nowhere(), lambda batch: None
            ) as saver:
                for item in inputs.plan:
                    for sample in maker.make([item]):
                        saver.put(sample)
            seconds[kind].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(seconds["written"], seconds["dropped"], strict=True)]
    return {
        "ratio": round(statistics.median(ratios), 3),
        "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
        "seconds_per_sample": round(statistics.median(seconds["dropped"]) / n, 3),
    }


def claiming(folder: Path, repeats: int) -> dict[str, Any]:
    """Return the milliseconds to claim and release 64 samples."""
    (folder / "claims").mkdir(parents=True)
    rows, times = MetadataIndex(folder, 64), []
    for _ in range(repeats):
        with Claims(folder) as claims:
            start = time.perf_counter()
            for index in range(64):
                claims.take(sample_id(index))
                rows.update()
                claims.release(sample_id(index))
            times.append(1000 * (time.perf_counter() - start))
    return {"ms_per_64": round(statistics.median(times), 2), "most_ms": round(max(times), 2)}


def rate(folder: Path) -> float:
    """Return samples per second over the time in which all processes of a run generated."""
    ends: dict[str, list[float]] = {}
    for path in folder.glob("metadata*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        ends[path.name] = list(np.cumsum([row["seconds"] for row in rows]))
    return sum((len(times) - 1) / (times[-1] - times[0]) for times in ends.values())


def processes(folder: Path, n: int, repeats: int) -> dict[str, Any]:
    """Return the rate of two processes, divided by that of one."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    for repeat in range(repeats):
        for count in rates:
            output = folder / f"{count}-{repeat}"
            subprocess.run(
                [sys.executable, "-m", "torch.distributed.run", "--standalone",
                 f"--nproc-per-node={count}", "--", "generation/run.py", "--n", str(n * count),
                 "--output", str(output)],
                cwd=ROOT, check=True, capture_output=True,
            )  # fmt: skip
            assert len(read_rows(output)) == n * count
            rates[count].append(rate(output))
    ratios = [b / a for a, b in zip(rates[1], rates[2], strict=True)]
    return {
        "ratio": round(statistics.median(ratios), 3),
        "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
        "samples_per_s": {str(k): round(statistics.median(v), 3) for k, v in rates.items()},
    }


def finished(folder: Path, n: int) -> dict[str, Any]:
    """Return the seconds until a finished folder is recognized as finished."""
    command = [sys.executable, "generation/run.py", "--output", str(folder), "--n"]
    subprocess.run([*command, "1"], cwd=ROOT, check=True, capture_output=True)
    (row,) = read_rows(folder).values()
    lines = [json.dumps(row | {"id": sample_id(index)}) for index in range(n)]
    files.write_bytes(folder / "metadata-000.jsonl", ("\n".join(lines) + "\n").encode())
    start = time.perf_counter()
    done = subprocess.run([*command, str(n)], cwd=ROOT, check=True, capture_output=True, text=True)
    return {"seconds": round(time.perf_counter() - start, 2), "says": done.stdout.strip()[-60:]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--n", type=int, default=16, help="samples per process and run")
    parser.add_argument("--rows", type=int, default=50_000, help="rows of the finished folder")
    parser.add_argument("--repeats", type=int, default=3, help="repeats of each measurement")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"load_average": round(os.getloadavg()[0], 2)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result["writing"] = writing(folder / "writing", arguments.n, arguments.repeats)
        result["claims"] = claiming(folder / "claims", 5 * arguments.repeats)
        result["processes"] = processes(folder / "processes", arguments.n, arguments.repeats)
        result["finished"] = finished(folder / "finished", arguments.rows)
    result |= describe("torch", "diffusers", "numpy")
    files.write_json(arguments.output, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    guard(main)
