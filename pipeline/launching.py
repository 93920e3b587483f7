"""Starts programs of ours with a launcher, forwards what they print, and keeps their logs."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline.errors import PREFIX


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
            *(["--multi_gpu"] if num_processes > 1 else []),
            *([] if accelerator else ["--cpu"])]  # fmt: skip


def complaint(log: Path) -> str:
    """Return the line in which a stage's program said why it stopped; launchers add their own."""
    for line in reversed(log.read_text(errors="replace").splitlines()):
        if line.startswith(PREFIX):
            return f" ({line.removeprefix(PREFIX)})"
        if line.startswith("$ "):  # the command; above it are earlier attempts
            break
    return ""


def forward(command: list[str], log: Path, threads: int) -> tuple[int, int]:
    """Run `command`, copy its output to ours and to `log`; return (exit code, peak memory in MB).

    Each of its processes has `threads` threads, unless OMP_NUM_THREADS is set. The peak is that of
    the largest process the command started and waited for.
    """
    environment = {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(threads), **os.environ}
    if sys.platform == "linux":  # all processes are here: meet without a lookup of the host's name
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    child = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert child.stdout is not None
    try:
        with open(log, "ab") as handle:
            handle.write(f"$ {shlex.join(command)}\n".encode())
            while chunk := os.read(child.stdout.fileno(), 1 << 16):
                handle.write(chunk)
                handle.flush()
                sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()
        _, status, usage = os.wait4(child.pid, 0)
    except BaseException:
        child.terminate()  # also reached by SIGTERM, see main; Ctrl-C has reached the child itself
        child.wait()
        raise
    child.returncode = os.waitstatus_to_exitcode(status)
    return child.returncode, usage.ru_maxrss // (1024 if sys.platform == "linux" else 1 << 20)


def stop_on_sigterm(*_: Any) -> None:
    """Leave through the ordinary clean-up when a scheduler ends the job."""
    raise SystemExit(143)
