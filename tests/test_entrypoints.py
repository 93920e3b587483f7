"""Entry files start fast: `--help` and config errors come without torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import EXIT_BAD_INPUT

ROOT = Path(__file__).resolve().parent.parent
ENTRIES = sorted(
    str(p.relative_to(ROOT))
    for folder in ("pipeline", "finetune", "generation", "segtrain")
    for p in (ROOT / folder).glob("*.py")
    if "    guard(main)\n" in p.read_text()
)
HEAVY = ("torch", "diffusers", "transformers", "mmseg", "mmengine")
WATCH = f"""
import runpy, sys
sys.path[0] = {{folder!r}}
sys.argv = {{argv!r}}
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    heavy = [m for m in {HEAVY!r} if m in sys.modules]
    if heavy:
        print("HEAVY", heavy, file=sys.stderr)
"""


def run_watched(entry: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run an entry file as `python entry ...` would, and report heavy modules on stderr."""
    path = ROOT / entry
    code = WATCH.format(folder=str(path.parent), argv=[str(path), *arguments])
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("entry", ENTRIES)
def test_help_comes_without_torch(entry: str) -> None:
    done = run_watched(entry, "--help")
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()
    assert "HEAVY" not in done.stderr


@pytest.mark.parametrize("entry", [e for e in ENTRIES if e != "pipeline/doctor.py"])
def test_unknown_config_key_is_one_line_without_torch(entry: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("colour: red\n")
    done = run_watched(entry, "--config", str(path))
    assert done.returncode == EXIT_BAD_INPUT
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1
    assert str(path) in lines[0] and "'colour'" in lines[0] and "known keys" in lines[0]


@pytest.mark.parametrize("entry", [e for e in ENTRIES if e != "pipeline/doctor.py"])
def test_missing_config_file_is_named(entry: str) -> None:
    done = run_watched(entry, "--config", "no/such.yaml")
    assert done.returncode == EXIT_BAD_INPUT
    assert "no/such.yaml" in done.stderr and "HEAVY" not in done.stderr


def test_dry_run_of_the_pipeline_comes_without_torch(tmp_path: Path) -> None:
    done = run_watched("pipeline/run.py", "--dry-run", "--workspace", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "generation/run.py" in done.stdout and "HEAVY" not in done.stderr
    assert not any(tmp_path.iterdir())


def test_entry_runs_from_another_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "pipeline" / "report.py"), "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_doctor_works_with_the_standard_library_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-S", "pipeline/doctor.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == EXIT_BAD_INPUT
    assert "torch" in done.stdout and "MISSING" in done.stdout and not done.stderr


def test_launchers_hide_the_exit_code_as_the_docs_say() -> None:
    """Our line comes through, the code does not; `--quiet` leaves out accelerate's traceback."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=1",
              "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]  # fmt: skip
    for quiet in (["--quiet"], []):
        done = subprocess.run(
            [*launch, *quiet, "generation/run.py", "--n", "0"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=600,
        )
        ours = [line for line in done.stderr.splitlines() if line.startswith("streetforge: ")]
        assert len(ours) == 1 and "--n 0" in ours[0]
        assert done.returncode == 1
        assert ("Traceback" in done.stderr) == (not quiet)
