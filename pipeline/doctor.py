"""Say whether this machine is ready: versions, devices, disk and optional parts, with remedies.

    python pipeline/doctor.py
    python pipeline/doctor.py --folder /data/runs     # the disk that results will go to

Exit code 0 if everything required is usable, 2 if not.
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import io
import os
import platform
import re
import shutil
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.errors import EXIT_BAD_INPUT, guard  # noqa: E402

REMEDY = "pip install -c constraints.txt -e ."
FLOORS = {  # distribution: (lowest version, module)
    "torch": ("2.10", "torch"),
    "diffusers": ("0.38", "diffusers"),
    "transformers": ("5.0", "transformers"),
    "accelerate": ("1.10", "accelerate"),
    "safetensors": ("0.8", "safetensors"),
    "pillow": ("12.3", "PIL"),
    "numpy": ("2.0", "numpy"),
    "scipy": ("1.13", "scipy"),
    "opencv-python": ("4.10", "cv2"),
    "mmengine": ("0.10.7", "mmengine"),
    "mmsegmentation": ("1.2.2", "mmseg"),
    "mmcv-lite": ("2.0.1", "mmcv"),
    "tyro": ("0.9", "tyro"),
    "pyyaml": ("6.0", "yaml"),
    "jinja2": ("3.1.6", "jinja2"),
}
OPTIONAL = {  # module: (what it is for, remedy)
    "tensorboard": ("training curves in TensorBoard", "pip install tensorboard"),
    "torchvision": (
        "needed by controlnet_aux",
        "install the build that belongs to your torch, from the same source",
    ),
    "xformers": ("faster attention on NVIDIA GPUs", "pip install -e '.[xformers]'"),
    "controlnet_aux": ("depth or edges as second control", "pip install -e '.[controlnet-aux]'"),
    "mmcv._ext": (
        "full mmcv; only models with its compiled operators need it",
        "pip uninstall mmcv-lite, then install mmcv 2.1 built for your torch",
    ),
}
DISK_GB = 5.0  # the demo's environment and workspace together


@dataclass(frozen=True)
class Finding:
    """One line of the report: `state` is ok, missing (fatal) or optional."""

    state: str
    what: str
    remedy: str = ""


def as_numbers(version: str) -> tuple[int, ...]:
    """Return the leading release numbers of a version: '2.13.0+cpu' -> (2, 13, 0)."""
    release = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in release.group().split(".")) if release else ()


def try_import(module: str) -> str:
    """Import `module` quietly; return an empty text or the reason why it failed."""
    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(module)
        except Exception as error:  # a broken package may raise anything while it is imported
            text = " ".join(str(error).split()) or type(error).__name__
            return text[:100]
    return ""


def check_required() -> list[Finding]:
    """Compare installed versions with the floors and import what is installed."""
    python = platform.python_version()
    if as_numbers(python) < (3, 11):
        findings = [Finding("missing", f"Python {python} < 3.11", "install Python 3.11")]
    else:
        findings = [Finding("ok", f"Python {python}")]
    for name, (floor, module) in FLOORS.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if name == "mmcv-lite" and not try_import("mmcv"):
                findings.append(Finding("ok", "mmcv (full)"))
                continue
            findings.append(Finding("missing", f"{name} is not installed", REMEDY))
            continue
        if as_numbers(version) < as_numbers(floor):
            findings.append(Finding("missing", f"{name} {version} < {floor}", REMEDY))
        elif module != "mmseg" and (reason := try_import(module)):  # mmseg wants mmcv's stand-in
            findings.append(Finding("missing", f"{name} {version}: {reason}", "reinstall it"))
        else:
            findings.append(Finding("ok", f"{name} {version} (at least {floor})"))
    return findings


def check_devices() -> list[Finding]:
    """List GPUs and CPU threads."""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    findings = [Finding("ok", f"CPU: {threads} threads, {memory:.0f} GB memory")]
    if try_import("torch"):
        return findings
    import torch

    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        text = f"GPU {index}: {device.name}, {device.total_memory / 1e9:.0f} GB"
        findings.append(Finding("ok", text))
    if torch.backends.mps.is_available():
        findings.append(Finding("ok", "GPU: Apple MPS"))
    if len(findings) == 1:
        remedy = "the demo runs on the CPU; for real runs install torch's CUDA build"
        findings.append(Finding("optional", "no GPU that this torch can use", remedy))
    return findings


def check_disk(folder: Path) -> Finding:
    """Compare free disk with what the demo needs."""
    existing = next(p for p in [folder.resolve(), *folder.resolve().parents] if p.exists())
    free = shutil.disk_usage(existing).free / 1e9
    if free < DISK_GB:
        return Finding("missing", f"{existing}: {free:.1f} GB free < {DISK_GB:.0f} GB", "free some")
    return Finding("ok", f"{existing}: {free:.0f} GB free")


def check_weights() -> Finding:
    """Look for the built-in models."""
    from pipeline.models import POCKET_BASE, POCKET_CONTROLNET

    for path in (POCKET_BASE / "model_index.json", POCKET_CONTROLNET / "config.json"):
        if not path.is_file():
            return Finding("missing", f"{path} is missing", "restore it with git checkout")
    return Finding("ok", "built-in pocket model")


def check_optional() -> list[Finding]:
    """Try the optional parts."""
    findings = []
    for module, (purpose, remedy) in OPTIONAL.items():
        reason = try_import(module)
        if not reason:
            findings.append(Finding("ok", f"{module}: {purpose}"))
        else:
            findings.append(Finding("optional", f"{module}: not usable ({purpose})", remedy))
    return findings


def main() -> int | None:
    """Print all findings."""
    # argparse, not pipeline.config: this program must work where nothing is installed yet.
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("."), help="folder on the disk that results will go to"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be checked")
    options = parser.parse_args()
    if options.dry_run:
        print(f"would check versions, devices, built-in weights and the disk of {options.folder}")
        return 0
    required = check_required()
    groups = {
        "Required": required,
        "Built-in weights": [check_weights()],
        "Devices": check_devices(),
        "Disk": [check_disk(options.folder)],
        "Optional": check_optional(),
    }
    marks = {"ok": "ok      ", "missing": "MISSING ", "optional": "-       "}
    for title, findings in groups.items():
        print(title)
        for finding in findings:
            remedy = f"  -> {finding.remedy}" if finding.remedy else ""
            print(f"  {marks[finding.state]} {finding.what}{remedy}")
    faults = sum(f.state == "missing" for group in groups.values() for f in group)
    print("\neverything required is usable" if not faults else f"\n{faults} to mend, see MISSING")
    return EXIT_BAD_INPUT if faults else 0


def console() -> None:
    """Start as an installed command."""
    guard(main)


if __name__ == "__main__":
    guard(main)
