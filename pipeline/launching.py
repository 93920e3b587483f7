"""Starts programs of ours with a launcher, forwards what they print, and keeps their logs."""

import contextlib
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from pipeline.errors import PREFIX, UserError


def has_accelerator() -> bool:
    """Tell whether a GPU and a torch build that can use it are here, without importing torch."""
    import importlib.util
    import runpy

    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    build = runpy.run_path(str(Path(spec.origin).parent / "version.py"))
    if build.get("hip"):
        return Path("/dev/kfd").exists()
    return bool(build.get("cuda")) and any(Path("/dev").glob("nvidia[0-9]*"))


def launch_prefix(
    launcher: str, num_processes: int, accelerator: bool, *, compiled: bool = False
) -> list[str]:
    """Return the command words before a stage's own, for its launcher and process count."""
    if launcher == "python":
        return [sys.executable]
    if num_processes > 1 and not accelerator:
        # `accelerate launch --cpu --num_processes N` starts one process only; torch's launcher
        # starts N, and accelerate inside the program then picks up their number and ranks. The
        # address keeps it from waiting for a name server to resolve this machine's own name, the
        # final -- from reading a stage's --n as an abbreviation of its own options.
        return [sys.executable, "-m", "torch.distributed.run", "--standalone",
                "--local-addr=127.0.0.1", f"--nproc-per-node={num_processes}", "--"]  # fmt: skip
    return [sys.executable, "-m", "accelerate.commands.launch", "--quiet",
            f"--num_processes={num_processes}", "--num_machines=1", "--mixed_precision=no",
            f"--dynamo_backend={'inductor' if compiled else 'no'}",
            # Port 0 is any free one: launches beside each other must not share it
            *(["--multi_gpu", "--main_process_port=0"] if num_processes > 1 else []),
            *([] if accelerator else ["--cpu"])]  # fmt: skip


def complaint(log: Path) -> str:
    """Return the line in which a stage's program said why it stopped; launchers add their own."""
    if not log.is_file():
        return ""
    for line in reversed(log.read_text(errors="replace").splitlines()):
        if line.startswith(PREFIX):
            return f" ({line.removeprefix(PREFIX)})"
        if line.startswith("$ "):  # the command; above it are earlier attempts
            break
    return ""


class Children:
    """The programs that are at work now, so that all of them can be stopped at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def start(self, command: list[str], environment: dict[str, str]) -> "subprocess.Popen[bytes]":
        """Start a program whose output can be read."""
        with self._lock:
            if self._stopped:
                raise SystemExit("stopped")
            child = subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            self._running.add(child)
        return child

    def ended(self, child: "subprocess.Popen[bytes]") -> None:
        """Forget a program."""
        with self._lock:
            self._running.discard(child)

    def stop(self) -> None:
        """Send SIGTERM to all programs and let no further one start."""
        with self._lock:
            self._stopped = True
            for child in self._running:
                terminate(child)


def terminate(child: "subprocess.Popen[bytes]") -> None:
    """Send SIGTERM to a program and all that it started: accelerate's launcher passes none on."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(child.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
    child.terminate()


def forward(
    command: list[str],
    log: Path,
    threads: int,
    *,
    children: Children | None = None,
    environment: Mapping[str, str] | None = None,
    show: bool = True,
) -> tuple[int, int]:
    """Run `command`, copy its output to `log` and, with `show`, to ours.

    Each of its processes has `threads` threads, unless OMP_NUM_THREADS is set. `environment` holds
    variables that replace ours. Returns the exit code and the peak memory in MB of the largest
    process that the command started and waited for. In a thread that is not the main one, only
    `children` can stop the program.
    """
    if log.exists() and not log.is_file():  # a pipe without a reader would stop us for ever
        raise UserError(f"{log}: is no regular file, but the log is written there; move it away")
    children = children or Children()
    variables = {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(threads), **os.environ}
    if sys.platform == "linux":  # all processes are here: meet without a lookup of the host's name
        variables.setdefault("GLOO_SOCKET_IFNAME", "lo")
    child = children.start(command, variables | dict(environment or {}))
    assert child.stdout is not None
    try:
        with open(log, "ab") as handle:
            handle.write(f"$ {shlex.join(command)}\n".encode())
            while chunk := os.read(child.stdout.fileno(), 1 << 16):
                handle.write(chunk)
                handle.flush()
                if show:
                    sys.stdout.buffer.write(chunk)
                    sys.stdout.buffer.flush()
        _, status, usage = os.wait4(child.pid, 0)
    except BaseException:
        terminate(child)  # also reached by SIGTERM; Ctrl-C has reached the programs themselves
        while os.read(child.stdout.fileno(), 1 << 16):
            pass  # until the last of them has ended, which may be after its launcher
        child.wait()
        raise
    finally:
        children.ended(child)
    child.returncode = os.waitstatus_to_exitcode(status)
    return child.returncode, usage.ru_maxrss // (1024 if sys.platform == "linux" else 1 << 20)


def stop_on_sigterm(*_: Any) -> None:
    """Leave through the ordinary clean-up when a scheduler ends the job."""
    raise SystemExit(143)
