"""Several workers of one run: equal bytes, and the share of time that sharing costs.

    python benchmarks/workers.py                       # about four minutes on two cores

- bytes: sets of one, two and three workers, and of one that is killed (SIGKILL) and started again,
  compared by the checksums in their rows;
- throughput: samples per second of two workers divided by that of one. A sample is a pause here, so
  the figure is the cost of claims and rows and not that of a shared memory bus.
"""

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import measure
from generation.samples import FinishedSample, SampleSpec
from generation.worker import work_until_done
from pipeline.claims import Claims
from pipeline.dataset_writer import DatasetWriter
from pipeline.errors import UserError, guard
from pipeline.metadata import read_rows
from pipeline.metadata_index import MetadataIndex

ROOT = Path(__file__).resolve().parent.parent
PAUSE_S = 0.2
POLL_S = 0.002


def paused_sample(index: int) -> FinishedSample:
    """Return a sample with an image of one colour."""
    spec = SampleSpec(np.zeros((128, 256), np.uint8), "", 0, index=index)
    return FinishedSample(spec, np.full((128, 256, 3), index % 256, np.uint8), seconds=PAUSE_S)


def work(folder: Path, n: int) -> None:
    """Run one worker of paused samples: report that it is ready, wait for `go`, print its time."""

    def make(indices: Sequence[int]) -> list[FinishedSample]:
        time.sleep(PAUSE_S * len(indices))
        return [paused_sample(index) for index in indices]

    rows = MetadataIndex(folder, n)
    with Claims(folder) as claims:
        print("ready", flush=True)
        while not (folder / "go").exists():
            time.sleep(POLL_S)
        start = time.perf_counter()
        work_until_done(make, DatasetWriter(folder, config={}), rows, claims, show_progress=False)
        print(time.perf_counter() - start)


def paused_run(folder: Path, workers: int, n: int) -> float:
    """Return the seconds of the slowest of `workers` that share `n` paused samples."""
    DatasetWriter(folder, config={})
    command = [sys.executable, __file__, "--worker", str(folder), "--n", str(n)]
    running = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(workers)
    ]
    for process in running:
        assert process.stdout and process.stdout.readline() == "ready\n"
    (folder / "go").touch()
    seconds = max(float(process.communicate()[0]) for process in running)
    assert len(read_rows(folder)) == n
    return seconds


def generate(folder: Path, n: int, workers: int = 1, *, kill_after: int = 0) -> None:
    """Generate `n` samples by several workers; kill a lone one when it has `kill_after` rows."""
    command = [
        sys.executable, "generation/run.py", "--n", str(n), "--output", str(folder), "--steps", "2",
        "--canvas-scale", "1",
    ]  # fmt: skip
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    running = [subprocess.Popen(command, cwd=ROOT, **quiet) for _ in range(workers)]
    while kill_after and running[0].poll() is None:
        if folder.is_dir() and len(read_rows(folder)) >= kill_after:
            running[0].send_signal(signal.SIGKILL)
        time.sleep(0.05)
    codes = [process.wait() for process in running]
    if kill_after:
        generate(folder, n)
    elif any(codes):
        raise UserError(f"{' '.join(command)}: exit codes {codes}; run it to see why")


def digests(folder: Path) -> dict[str, tuple[str, str]]:
    """Return the checksums of image and label of each sample."""
    rows = read_rows(folder)
    return {key: (row["image_sha256"], row["label_sha256"]) for key, row in rows.items()}


def compare_bytes(results: measure.Results, folder: Path, n: int) -> None:
    """Compare the bytes of sets that were made in several ways."""
    ways = {
        "one worker": {},
        "two workers": {"workers": 2},
        "three workers": {"workers": 3},
        "killed and started again": {"kill_after": max(1, n // 3)},
    }
    if results.quick:
        ways = {name: ways[name] for name in ("one worker", "two workers")}
    for name, options in ways.items():
        generate(folder / name, n, **options)
    expected = digests(folder / "one worker")
    assert len(expected) == n
    differing = sum(digests(folder / name) != expected for name in ways)
    results.add(f"sets that differ from that of one worker, of {len(ways) - 1}", differing, "",
                "<= 0")  # fmt: skip


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--n", type=int, default=0, help="samples of a set; 0 takes 60 and 12")
    parser.add_argument("--worker", type=Path, help="run one worker of paused samples there")
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.n)
        return
    results = measure.Results("workers", "Several workers of one run", arguments)
    repeats = 1 if arguments.quick else arguments.repeats
    paused, real = (arguments.n,) * 2 if arguments.n else (8, 3) if arguments.quick else (60, 12)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        compare_bytes(results, folder, real)
        seconds: dict[str, list[float]] = {"one": [], "two": []}
        for repeat in range(repeats):
            for workers, kind in enumerate(seconds, start=1):
                seconds[kind].append(paused_run(folder / f"{kind}{repeat}", workers, paused))
    results.add("samples per second, two workers / one, paused samples",
                measure.ratio(seconds, "one", "two"), "", ">= 1.95")  # fmt: skip
    results.details["seconds"] = seconds
    results.write()


if __name__ == "__main__":
    guard(main)
