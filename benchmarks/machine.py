"""Describes the machine, versions and commit of a measurement."""

import os
import platform
import re
import subprocess
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def describe(*packages: str) -> dict[str, Any]:
    """Return machine, versions, commit and date; packages that are not installed are left out."""
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "processor": processor(),
        "versions": {"python": platform.python_version()} | found,
        "commit": commit(),
        "date": date.today().isoformat(),
    }


def processor() -> str:
    """Return the name of the processor, that of its kind if the system does not give it."""
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.is_file() else ""
    named = re.search(r"model name\s*:\s*(.+)", text)
    return named[1].strip() if named else platform.machine()


def commit() -> str:
    """Return the commit of the checkout, marked if files differ from it.

    Without git it is what STREETFORGE_COMMIT says, or "unknown".
    """
    if named := os.environ.get("STREETFORGE_COMMIT"):
        return named
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def heading(command: str) -> str:
    """Return the lines above a Markdown table: machine, versions, commit, date and command."""
    details = describe("torch", "diffusers", "accelerate", "mmsegmentation")
    versions = ", ".join(f"{name} {version}" for name, version in details["versions"].items())
    return (
        f"Machine: {details['machine']}. Versions: {versions}. Commit {details['commit']}, "
        f"{details['date']}.\n\nCommand: `{command}`\n"
    )
