"""Times, memory and clocks of the device that the GPU benchmarks run on; a CPU in rehearsals."""

import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Spread, meets, ratio

CLOCKS = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "clocks_event_reasons.active")


@dataclass
class Step:
    """One step of the suite: where it runs, at which size, and what it has found so far."""

    folder: Path
    """working folder with the base models"""
    toy: bool
    """rehearsal on a CPU: small networks, one repeat"""
    rows: list[dict[str, Any]] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """The GPU, the CPU in a rehearsal."""
        return torch.device("cpu" if self.toy or not torch.cuda.is_available() else "cuda")

    @property
    def repeats(self) -> int:
        """Repeats of each measurement."""
        return 1 if self.toy else 5

    def size(self, real: Any, toy: Any) -> Any:
        """Return the size of a full measurement or of a rehearsal."""
        return toy if self.toy else real

    def add(
        self, name: str, value: Spread | float, unit: str = "", goal: str = "", ceiling: str = ""
    ) -> None:
        """Add a figure. `ceiling`: what physics allows; a better figure is a measuring error."""
        spread = value if isinstance(value, Spread) else Spread.of([float(value)])
        row = {"name": name, **asdict(spread), "unit": unit, "goal": goal, "ceiling": ceiling}
        if goal:
            row["met"] = meets(spread.median, goal)
        self.rows.append(row)

    def attempt(self, name: str, action: Callable[[], object], *, note: str = "failed") -> None:
        """Do one part of the step; if it fails, note the reason and go on.

        `note`: "failed", or "unsupported" if a device may lack what the part needs.
        """
        try:
            action()
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            self.details.setdefault(note, {})[name] = f"{type(error).__name__}: {lines[0]}"
            if self.device.type == "cuda":
                torch.cuda.empty_cache()


def in_turn(
    step: Step, calls: Mapping[str, Callable[[], object]], *, warm_up: int = 2, repeats: int = 0
) -> dict[str, list[float]]:
    """Return the milliseconds of each call, one call of each in turn, by CUDA events on a GPU.

    `repeats` 0 takes those of the step.
    """
    found: dict[str, list[float]] = {name: [] for name in calls}
    times = min(repeats, step.repeats) or step.repeats
    for repeat in range(-warm_up if not step.toy else 0, times):
        for name, call in calls.items():
            elapsed = milliseconds(call, step.device)
            if repeat >= 0:
                found[name].append(elapsed)
    return found


def milliseconds(call: Callable[[], object], device: torch.device) -> float:
    """Return the milliseconds of one call."""
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return 1000 * (time.perf_counter() - start)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def per(spread_of: list[float], count: int) -> Spread:
    """Return the milliseconds of one of `count` equal parts of a call."""
    return Spread.of([value / count for value in spread_of])


def speed_up(found: dict[str, list[float]], slow: str, fast: str, factor: float = 1.0) -> Spread:
    """Return the ratio of two calls that were measured in turn, times a factor."""
    one = ratio(found, slow, fast)
    return Spread(one.median * factor, one.low * factor, one.high * factor, one.repeats)


def peak_gib(call: Callable[[], object], device: torch.device) -> float | None:
    """Return the most memory that tensors take during a call, weights included; None on a CPU."""
    if device.type != "cuda":
        call()
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**30


def clocks() -> dict[str, str]:
    """Return clocks, power, temperature and what slows the GPU down; empty without one."""
    command = ["nvidia-smi", f"--query-gpu={','.join(CLOCKS)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values = done.stdout.strip().splitlines()[:1]
    if done.returncode or not values:
        return {}
    return dict(zip(CLOCKS, [value.strip() for value in values[0].split(",")], strict=False))
