"""Starts programs of ours with a launcher, forwards what they print, and keeps their logs."""

import contextlib
import os
import selectors
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from pipeline.errors import PREFIX, UserError

GRACE_S = 300.0  # from SIGTERM to SIGKILL: a last update and the checkpoint of a large model
KILL_S = 5.0  # for SIGKILL to take effect
POLL_S = 0.2


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


class Ending:
    """The end of a program and all that it started: accelerate's launcher passes no signal on.

    They get SIGTERM at once, and SIGKILL after `GRACE_S` seconds.
    """

    def __init__(self, program: psutil.Process) -> None:
        started: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):
            started = program.children(recursive=True)
        self._alive = [*started, program]
        self._deadline = time.monotonic() + GRACE_S
        for process in self._alive:
            with contextlib.suppress(psutil.Error):  # it has ended, or is another user's
                process.terminate()

    def is_over(self) -> bool:
        """Tell whether all have ended, or cannot be ended by us."""
        self._alive = [process for process in self._alive if _is_alive(process)]
        late_s = time.monotonic() - self._deadline
        for process in self._alive if late_s > 0 else ():
            with contextlib.suppress(psutil.Error):
                process.kill()
        return not self._alive or late_s > KILL_S


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


class Children:
    """The programs that are at work now, so that all of them can be stopped at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[subprocess.Popen[bytes], psutil.Process] = {}
        self._endings: dict[subprocess.Popen[bytes], Ending] = {}
        self._stopped = False

    def start(self, command: list[str], environment: dict[str, str]) -> "subprocess.Popen[bytes]":
        """Start a program whose output can be read."""
        with self._lock:
            if self._stopped:
                raise SystemExit("stopped")
            child = subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            self._running[child] = psutil.Process(child.pid)  # no later program of this id
        return child

    def ended(self, child: "subprocess.Popen[bytes]") -> None:
        """Forget a program."""
        with self._lock:
            self._running.pop(child, None)
            self._endings.pop(child, None)

    def end(self, child: "subprocess.Popen[bytes]") -> None:
        """Send SIGTERM to a program and all that it started, once."""
        with self._lock:
            self._end(child)

    def _end(self, child: "subprocess.Popen[bytes]") -> None:
        if child not in self._endings:
            self._endings[child] = Ending(self._running[child])

    def stop(self) -> None:
        """Send SIGTERM to all programs and let no further one start."""
        with self._lock:
            self._stopped = True
            for child in self._running:
                self._end(child)

    def output_of(self, child: "subprocess.Popen[bytes]") -> Iterator[bytes]:
        """Yield what a program and all that it started print, until the last has closed the pipe.

        Once they are stopped, until the last has ended, which may be after its launcher: a service
        that one of them left behind may keep the pipe open.
        """
        assert child.stdout is not None
        pipe = child.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            is_over = False
            while not is_over:
                ending = self._endings.get(child)
                is_over = ending is not None and ending.is_over()
                if selector.select(0 if is_over else POLL_S):
                    if not (chunk := os.read(pipe, 1 << 16)):
                        return
                    yield chunk


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
    try:
        with open(log, "ab") as handle:
            handle.write(f"$ {shlex.join(command)}\n".encode())
            for chunk in children.output_of(child):
                handle.write(chunk)
                handle.flush()
                if show:
                    sys.stdout.buffer.write(chunk)
                    sys.stdout.buffer.flush()
        _, status, usage = os.wait4(child.pid, 0)
    except BaseException:
        children.end(child)  # also reached by SIGTERM; Ctrl-C has reached the programs themselves
        for _ in children.output_of(child):
            pass  # a full pipe would stop them
        child.wait()
        raise
    finally:
        children.ended(child)
    child.returncode = os.waitstatus_to_exitcode(status)
    return child.returncode, usage.ru_maxrss // (1024 if sys.platform == "linux" else 1 << 20)


def stop_on_sigterm(*_: Any) -> None:
    """Leave through the ordinary clean-up when a scheduler ends the job."""
    raise SystemExit(143)
