"""Trials of the writing side of generation: the real program, with invented images.

    python tests/generation/crash_trials.py kills 200
    python tests/generation/crash_trials.py crash_points
    python tests/generation/crash_trials.py full_disks 30     # inside `unshare -rm`

Each prints one JSON line of figures. A trial runs `main` of generation/run.py in forked processes,
ends them in some way, runs again, and compares with a run that nothing disturbed. Networks alone
are replaced: what they draw follows from the seed, and one sample always fails.
"""

import argparse
import contextlib
import errno
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from generation import run
from generation.sampler import networks as loading
from generation.sampler import sampler as drawing
from generation.samples import ATTEMPTS, FinishedSample, SampleSpec
from pipeline import files
from pipeline.errors import EXIT_INCOMPLETE, UserError
from pipeline.metadata import read_rows

SIZE = (32, 64)
PLACE = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # no kill tests a disk's sync
SURPRISE = 1  # the sample that fails
DONE = EXIT_INCOMPLETE  # of a run that nothing disturbs, since one sample fails
FLAGS = ["--crop-px", "32", "64", "--fusion", "none", "--steps", "1"]
MOST = 16  # samples of a trial
DELAYS: dict[int, float] = {}
"""Seconds that a sample takes beside those of `generate`."""


def draw(index: int) -> FinishedSample:
    """Invent a sample, for tests of the writer alone."""
    rng = np.random.default_rng(index)
    label = rng.integers(0, 19, SIZE, dtype=np.uint8)
    spec = SampleSpec(label, "", seed=index, index=index)
    if index == SURPRISE:
        spec = replace(spec, retries=ATTEMPTS - 1)
        return FinishedSample(spec, None, "the image is constant")
    return FinishedSample(spec, rng.integers(0, 255, (*SIZE, 3), dtype=np.uint8))


class InventingSampler:
    """Stands for the networks: an image of noise from the seed, or one that is constant."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.networks = SimpleNamespace(text=SimpleNamespace(truncates=lambda prompt: False))

    def start(self, specs: list[SampleSpec]) -> list:
        time.sleep(sum(self.seconds + DELAYS.get(spec.index, 0) for spec in specs))
        return [SimpleNamespace(result=functools.partial(self.finish, spec)) for spec in specs]

    def finish(self, spec: SampleSpec) -> FinishedSample:
        shape = (*spec.label.shape, 3)
        image = np.random.default_rng(spec.seed).integers(0, 255, shape, dtype=np.uint8)
        if spec.index == SURPRISE:
            return FinishedSample(spec, None, "the image is constant")
        return FinishedSample(spec, image)


def generate(folder: Path, n: int, seconds: float = 0.0) -> int:
    """Run generation/run.py with `folder` as output, and return its exit code."""
    assert n <= MOST
    words = ["run.py", *FLAGS, "--n", str(n), "--output", str(folder)]
    with (
        patch.object(sys, "argv", words),
        patch.object(loading, "load_networks", lambda config, device: None),
        patch.object(drawing, "Sampler", lambda networks, config: InventingSampler(seconds)),
        patch.object(run, "check_loadable", lambda config: None),  # reads only, and takes seconds
    ):
        return run.main() or 0


@functools.cache
def undisturbed() -> dict[str, dict]:
    """Return the rows of a run of MOST samples that nothing disturbed, by id.

    What the program reads of the models stays in this process's memory for those forked from it.
    """
    with tempfile.TemporaryDirectory(dir=PLACE) as place, contextlib.redirect_stdout(sys.stderr):
        assert generate(Path(place) / "set", MOST) == DONE
        return read_rows(Path(place) / "set")


def forked(call: Callable[[], int]) -> int:
    """Start `call` in a child process and return its id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    try:
        os._exit(call())
    except UserError as error:
        print(f"streetforge: {error}", file=sys.stderr, flush=True)
        os._exit(2)
    except SystemExit as stopped:
        os._exit(stopped.code)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(99)


def finish(child: int) -> int:
    """Wait for a child; return its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def faults(folder: Path, n: int) -> Counter:
    """Count what is wrong with a set that should be finished."""
    found: Counter = Counter()
    lines = [
        json.loads(line)
        for path in folder.glob("metadata-*.jsonl")
        for line in path.read_bytes().splitlines()
    ]
    good = [row["id"] for row in lines if row["status"] == "ok"]
    rows = read_rows(folder)
    found["lost"] = n - len(rows)
    found["duplicate"] = len(good) - len(set(good))
    named = {"run.json", "classes.json", "status.json", "label_maps.json", "README.md"}
    named |= {path.name for path in folder.glob("metadata-*.jsonl")}
    for index in range(n):
        key = f"{index:08d}"
        row, right = rows.get(key, {}), undisturbed()[key]
        if index == SURPRISE:
            found["lost"] += row.get("status") != "failed"
            continue
        for kind in ("image", "label"):
            name = row.get(f"{kind}_file_name", "")
            named.add(name)
            data = (folder / name).read_bytes() if name and (folder / name).is_file() else b""
            sums = {files.sha256(data), row.get(f"{kind}_sha256")}
            found["corrupt"] += sums != {right[f"{kind}_sha256"]}
    present = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    found["stray"] = len(present - named) + (folder / "claims").exists()
    found["record"] = not (folder / "run.json").is_file()
    return +found


def kills(count: int, n: int = 12) -> dict:
    """End `count` runs of one or two processes by `kill -9` at a random moment, then continue."""
    rng, found, landed, midway, tried = random.Random(0), Counter(), 0, 0, 0
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=PLACE) as place:
        folder = Path(place) / "set"
        usual_s = 9.0
        for _ in range(3):
            begun = time.monotonic()
            finish(forked(lambda: generate(folder, n, 0.03)))
            usual_s = min(usual_s, time.monotonic() - begun)
            found.update(faults(folder, n))
            shutil.rmtree(folder)
        while landed < count:
            shutil.rmtree(folder, ignore_errors=True)
            tried += 1
            children = [forked(lambda: generate(folder, n, 0.03))]
            if tried % 3 == 0:
                children.append(forked(lambda: generate(folder, n, 0.03)))
            time.sleep(rng.uniform(0, usual_s))
            doomed = children if tried % 2 else children[:1]
            for child in doomed:
                os.kill(child, signal.SIGKILL)
            codes = [finish(child) for child in children]
            landed += codes[0] == -signal.SIGKILL
            midway += codes[0] == -signal.SIGKILL and 0 < finished(folder) < n
            found["code"] += any(code not in (0, DONE, -signal.SIGKILL) for code in codes)
            found["code"] += finish(forked(lambda: generate(folder, n))) != DONE
            found.update(faults(folder, n))
    seconds = round(time.monotonic() - started, 1)
    figures = {"landed": landed, "midway": midway, "tried": tried, "seconds": seconds}
    return {**figures, "faults": dict(+found)}


def finished(folder: Path) -> int:
    """Return how many rows a folder has, which may be in any state."""
    lines = (path.read_bytes().count(b"\n") for path in folder.glob("metadata-*.jsonl"))
    return sum(lines)


CALLS = ("write", "fsync", "replace", "rename", "link", "unlink", "mkdir", "truncate")


def disturb(at: int, act: Callable[[str, tuple], None]) -> list[int]:
    """Let the `at`-th call that changes a file do `act` first; return a list with their number."""
    seen = [0]

    def wrap(name: str, original: Callable) -> Callable:
        def changed(*arguments, **options):
            seen[0] += 1
            if seen[0] == at:
                act(name, arguments)
            return original(*arguments, **options)

        return changed

    for name in CALLS:
        setattr(os, name, wrap(name, getattr(os, name)))
    return seen


def crash_points(n: int = 3) -> dict:
    """Die at each call that changes a file, half way in a write; then continue."""
    found, points = Counter(), 0
    original = os.write

    def die(name: str, arguments: tuple) -> None:
        if name == "write":
            original(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
        os._exit(77)

    def dying(folder: Path, at: int) -> int:
        disturb(at, die)
        return generate(folder, n)

    with tempfile.TemporaryDirectory(dir=PLACE) as place:
        folder = Path(place) / "set"
        while True:
            points += 1
            code = finish(forked(lambda at=points: dying(folder, at)))
            if code != 77:
                break
            found["code"] += finish(forked(lambda: generate(folder, n))) != DONE
            if bad := faults(folder, n):
                print(f"point {points}: {dict(bad)}", file=sys.stderr)
                found.update(bad)
            shutil.rmtree(folder)
    return {"points": points - 1, "last_code": code, "faults": dict(+found)}


def errors(number: int, n: int = 2, *, times: int = 10**9) -> dict:
    """Fail the k-th write or fsync and the `times` - 1 next ones, for each k; then continue."""
    found, codes, at = Counter(), Counter(), 0
    files.PAUSES_S = (0.01, 0.01, 0.01)

    def failing(folder: Path, at: int) -> int:
        seen = [0]

        def wrap(original: Callable) -> Callable:
            def changed(*arguments):
                seen[0] += 1
                if at <= seen[0] < at + times:
                    raise OSError(number, os.strerror(number))
                return original(*arguments)

            return changed

        os.write, os.fsync = wrap(os.write), wrap(os.fsync)
        code = generate(folder, n)
        return code if seen[0] >= at else 78

    with tempfile.TemporaryDirectory(dir=PLACE) as place:
        folder, log = Path(place) / "set", Path(place) / "log"
        while True:
            at += 1
            code = finish(forked(lambda at=at: logged(log, lambda: failing(folder, at))))
            if code == 78:
                break
            codes[str(code)] += 1
            text = log.read_text()
            found["line"] += code == 2 and said(text) != 1
            found["traceback"] += "Traceback" in text
            found["code"] += finish(forked(lambda: generate(folder, n))) != DONE
            found.update(faults(folder, n))
            shutil.rmtree(folder)
    return {"points": at - 1, "codes": dict(codes), "faults": dict(+found)}


def said(text: str) -> int:
    """Count the lines of stderr that are not of the progress."""
    return sum(" samples (" not in line for line in text.splitlines())


def logged(log: Path, call: Callable[[], int]) -> int:
    """Run `call` with stderr going to a file."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    return call()


def unforeseen(folder: Path, n: int) -> int:
    """Run as if the disk were full only later: nothing looks for space beforehand."""
    with patch.object(run.dry_run, "require_disk", lambda folder, missing, crop: None):
        return generate(folder, n)


def full_disks(count: int, n: int = 12) -> dict:
    """Run on a small disk at `count` fill levels, then free the space and continue."""
    found, codes, lines = Counter(), Counter(), set()
    with tempfile.TemporaryDirectory() as place:
        disk, log = Path(place) / "disk", Path(place) / "log"
        filler, folder = disk / "filler", disk / "set"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=True)
        for level in range(count):
            with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as handle:
                while True:
                    handle.write(bytes(4096))
            os.truncate(filler, max(filler.stat().st_size - 4096 * level, 0))
            code = finish(forked(lambda: logged(log, lambda: unforeseen(folder, n))))
            codes[str(code)] += 1
            text = log.read_text()
            found["line"] += code == 2 and (said(text) != 1 or "No space" not in text)
            lines |= {text.splitlines()[-1].split(": ", 2)[-1]} if code == 2 else set()
            filler.unlink()
            found["code"] += finish(forked(lambda: generate(folder, n))) != DONE
            found.update(faults(folder, n))
            shutil.rmtree(folder)
        subprocess.run(["umount", disk], check=True)
    return {
        "levels": count,
        "codes": dict(codes),
        "faults": dict(+found),
        "line": sorted(lines)[:1],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("trial")
    parser.add_argument("count", type=int, nargs="?")
    given = parser.parse_args()
    undisturbed()
    if given.trial in ("EIO", "ENOSPC", "EDQUOT", "EFBIG"):
        print(json.dumps(errors(getattr(errno, given.trial), times=given.count or 10**9)))
    elif given.count is None:
        print(json.dumps(globals()[given.trial]()))
    else:
        print(json.dumps(globals()[given.trial](given.count)))
