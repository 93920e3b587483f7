"""Runs the stages of a recipe: one after the other, or several that do not read each other."""

import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.errors import UserError
from pipeline.launching import Children, complaint, forward, launch_prefix
from pipeline.stage_records import read_record
from pipeline.stages import Stage

DEVICES = "CUDA_VISIBLE_DEVICES"  # ROCm's builds of torch read it, too
Place = dict[str, str]
"""Environment variables of one of the stages that run at a time."""


@dataclass
class Record:
    """What is known of the stages of a workspace, kept in its timings.json."""

    workspace: Path
    stages: dict[str, dict[str, Any]]
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, workspace: Path) -> "Record":
        """Read the record of a workspace."""
        return cls(workspace, read_record(workspace / "timings.json"))

    def save(self, name: str, entry: dict[str, Any]) -> None:
        """Set the entry of a stage and write all of them."""
        with self.lock:
            self.stages[name] = dict(entry)
            files.write_json(self.workspace / "timings.json", {"stages": self.stages})

    def inputs(self, stage: Stage) -> dict[str, str | None]:
        """Return when the stages that a stage reads ended."""
        return {name: self.stages.get(name, {}).get("finished_at") for name in stage.inputs}

    def stale_reason(self, stage: Stage) -> str:
        """Say why `stage` must run, or return an empty text if it is complete."""
        past = self.stages.get(stage.name)
        if past is None:
            return "not run yet"
        if past["digest"] != stage.fingerprint():
            return "its command changed"
        for name, made in self.inputs(stage).items():
            if past["inputs"].get(name) != made:
                return f"its input {name} was made again"
        if past["finished_at"] is None:
            return "unfinished, continues"
        if not stage.marker.exists():
            return f"{stage.marker} is gone"
        return ""


@dataclass(frozen=True)
class Launch:
    """How the programs of stages are started.

    `processes` are those asked for per stage, None if the stage decides. `jobs` stages run at a
    time.
    """

    processes: int | None
    jobs: int
    accelerator: bool
    places: tuple[Place, ...]
    """One per job."""

    @classmethod
    def on(cls, processes: int | None, jobs: int, accelerator: bool) -> "Launch":
        """Share out the GPUs of this machine, or its processor cores."""
        if jobs == 1 or not accelerator:
            return cls(processes, jobs, accelerator, ({},) * jobs)
        devices, each = visible_devices(), processes or 1
        if jobs * each > len(devices):
            raise UserError(
                f"--jobs {jobs}: with {each} process(es) of a stage it needs {jobs * each} GPUs, "
                f"but this machine has {len(devices)}; lower --jobs or --num-processes"
            )
        shares = (devices[job * each : (job + 1) * each] for job in range(jobs))
        return cls(processes, jobs, accelerator, tuple({DEVICES: ",".join(s)} for s in shares))

    def process_count(self, stage: Stage) -> int:
        """Return how many processes a stage gets: those asked for, else its own number on a CPU."""
        if self.processes or self.accelerator:
            return self.processes or 1
        return min(stage.cpu_processes, self._share_of_cores)

    def threads(self, stage: Stage) -> int:
        """Return the threads of each process of a stage."""
        return max(1, self._share_of_cores // self.process_count(stage))

    def prefix(self, stage: Stage) -> list[str]:
        """Return the command words before a stage's own."""
        count = self.process_count(stage)
        return launch_prefix(stage.launcher, count, self.accelerator, compiled=stage.compiled)

    def command(self, stage: Stage) -> str:
        """Return the command of a stage as a user would type it."""
        return shlex.join(["python", *self.prefix(stage)[1:], *stage.command])

    @property
    def _share_of_cores(self) -> int:
        return max(1, (os.cpu_count() or 1) // self.jobs)


def visible_devices() -> list[str]:
    """Return the names of the GPUs that this process may use; torch counts them in another one."""
    if DEVICES in os.environ:
        return [name for name in os.environ[DEVICES].split(",") if name]
    program = "import torch; print(torch.cuda.device_count())"
    counted = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return [str(index) for index in range(int(counted.stdout.strip() or 0))]


class Runner:
    """Runs planned stages: each once those that it reads have ended, several at a time."""

    def __init__(
        self, planned: Sequence[tuple[Stage, str]], record: Record, launch: Launch
    ) -> None:
        self.record, self.launch = record, launch
        self.waiting = [stage for stage, reason in planned if reason]
        self.running: dict[Future[None], tuple[Stage, Place]] = {}
        self.free = list(launch.places)
        self.failure: BaseException | None = None
        self.children = Children()
        self.titles, self.reasons = {}, {}
        for number, (stage, reason) in enumerate(planned, start=1):
            self.titles[stage.name] = f"[{number}/{len(planned)}] {stage.name}"
            self.reasons[stage.name] = reason
            if not reason:
                print(f"{self.titles[stage.name]}: complete, skipped", flush=True)

    def run(self) -> None:
        """Run all; after a failure start no further stage, wait for those at work, and raise it."""
        with ThreadPoolExecutor(self.launch.jobs) as pool:
            try:
                while self.running or (self.waiting and self.failure is None):
                    for stage in self._ready():
                        place = self.free.pop(0)
                        self._announce(stage)
                        self.running[pool.submit(self._run_stage, stage, place)] = stage, place
                    for future in wait(self.running, return_when=FIRST_COMPLETED).done:
                        self._end(future)
            except BaseException:
                self.children.stop()  # by SIGTERM, too; Ctrl-C has reached the children themselves
                raise
        if self.failure is not None:
            raise self.failure

    def _ready(self) -> list[Stage]:
        """Take the stages off the list that can start now."""
        if self.failure is not None:
            return []
        unfinished = {s.name for s in self.waiting} | {s.name for s, _ in self.running.values()}
        ready = [s for s in self.waiting if unfinished.isdisjoint(s.inputs)][: len(self.free)]
        self.waiting = [stage for stage in self.waiting if stage not in ready]
        return ready

    def _announce(self, stage: Stage) -> None:
        title, reason = self.titles[stage.name], self.reasons[stage.name]
        print(f"\n{title}: {stage.about} ({reason})", flush=True)
        if self.launch.jobs > 1:
            print(f"log: {self._log_of(stage)}", flush=True)

    def _end(self, future: "Future[None]") -> None:
        """Report the end of a stage."""
        stage, place = self.running.pop(future)
        self.free.append(place)
        title, error = self.titles[stage.name], future.exception()
        if error is None:
            print(f"{title}: done in {self.record.stages[stage.name]['seconds']:.0f} s", flush=True)
        elif self.failure is None:
            self.failure = error
            if self.running:
                print(f"{title}: failed; the stages that are at work end first", flush=True)

    def _run_stage(self, stage: Stage, place: Place) -> None:
        """Run one stage, keep its log and its record; raise `UserError` if it fails."""
        now = self._first_entry(stage)
        log = self._log_of(stage)
        log.parent.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        try:
            code, peak_mb = forward(
                [*self.launch.prefix(stage), *stage.command],
                log,
                self.launch.threads(stage),
                children=self.children,
                environment=place,
                show=self.launch.jobs == 1,
            )
            now["peak_mb"] = max(now["peak_mb"], peak_mb)
        finally:
            now["seconds"] = round(now["seconds"] + time.monotonic() - started, 1)
            self.record.save(stage.name, now)
        if code != 0:
            raise UserError(
                f"stage {stage.name} stopped with exit code {code}{complaint(log)}; its log is "
                f"{log}, its command: {now['command']} ; fix the cause and run the same recipe "
                "again"
            )
        if not stage.marker.exists():
            raise UserError(
                f"stage {stage.name} ended without writing {stage.marker}; see its log {log}, and "
                "check `output` and `done` of the recipe"
            )
        now["finished_at"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self.record.save(stage.name, now)

    def _first_entry(self, stage: Stage) -> dict[str, Any]:
        """Record that a stage starts; remove what an earlier version of it wrote."""
        now: dict[str, Any] = {
            "command": self.launch.command(stage),
            "digest": stage.fingerprint(),
            "inputs": self.record.inputs(stage),
            "seconds": 0.0,
            "peak_mb": 0,
            "finished_at": None,
        }
        past = self.record.stages.get(stage.name)
        same = past is not None and all(past[key] == now[key] for key in ("digest", "inputs"))
        if past and same and past["finished_at"] is None:
            # An interrupted attempt
            now["seconds"], now["peak_mb"] = past["seconds"], past["peak_mb"]
        elif past:
            remove_output(stage, self.record.workspace)
        self.record.save(stage.name, now)
        return now

    def _log_of(self, stage: Stage) -> Path:
        return self.record.workspace / "logs" / f"{stage.name}.log"


def remove_output(stage: Stage, workspace: Path) -> None:
    """Delete the output that an earlier version of this stage wrote in the workspace."""
    if workspace.resolve() not in stage.output.resolve().parents:
        raise UserError(
            f"stage {stage.name}: {stage.output} is outside the workspace and holds an older "
            "result; move it away yourself"
        )
    if stage.output.is_dir() and not stage.output.is_symlink():
        shutil.rmtree(stage.output)
    else:
        stage.output.unlink(missing_ok=True)
