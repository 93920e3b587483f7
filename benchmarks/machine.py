"""Describes the machine, versions and commit of a measurement."""

import os
import platform
import subprocess
from datetime import date
from importlib import metadata
from typing import Any


def describe(*packages: str) -> dict[str, Any]:
    """Return machine, versions, commit and date."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True
    ).stdout.strip()
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in packages},
        "commit": commit,
        "date": date.today().isoformat(),
    }


def heading(command: str) -> str:
    """Return the lines above a Markdown table: machine, versions, commit, date and command."""
    details = describe("torch", "diffusers", "accelerate", "mmsegmentation")
    versions = ", ".join(f"{name} {version}" for name, version in details["versions"].items())
    return (
        f"Machine: {details['machine']}. Versions: {versions}. Commit {details['commit']}, "
        f"{details['date']}.\n\nCommand: `{command}`\n"
    )
