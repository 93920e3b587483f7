"""Write a self-contained HTML report of a workspace; it opens offline.

    python pipeline/report.py --workspace runs/pocket

Reads files only. What is not there yet is left out with a note, so a report of an unfinished run
works too.
"""

import importlib.metadata
import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline import files
from pipeline.config import parse, show
from pipeline.errors import UserError, guard
from pipeline.output_files import open_output_file
from pipeline.stages import read_record

TEMPLATE = "page.html.j2"
PACKAGES = ("streetforge", "torch", "diffusers", "transformers", "accelerate", "mmsegmentation",
            "mmengine", "numpy", "pillow")  # fmt: skip
LARGEST_MB = 15


@dataclass(frozen=True)
class Config:
    """Settings of the report."""

    workspace: Path = Path("runs/pocket")
    """Folder of a pipeline run."""
    output: str = ""
    """HTML file to write; empty is WORKSPACE/report.html."""
    per_condition: int = 2
    """Generated images shown for each condition."""


def machine() -> dict[str, str]:
    """Return what the run was made on."""
    facts = {
        "system": f"{platform.system()} {platform.machine()}",
        "CPU threads": str(os.cpu_count()),
        "Python": platform.python_version(),
    }
    for name in PACKAGES:
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return facts


def stage_lines(workspace: Path) -> list[dict[str, Any]]:
    """Return the stages of timings.json with the width of their bar in percent."""
    stages = read_record(workspace / "timings.json", ("seconds", "peak_mb", "finished_at"))
    longest = max((s["seconds"] for s in stages.values()), default=0) or 1
    return [
        {"command": "", **s, "name": name, "bar": 100 * s["seconds"] / longest}
        for name, s in stages.items()
        if s["finished_at"]
    ]


def is_recolored(folder: Path) -> bool:
    """Tell whether the images of a set are the source's own in the colours of the drawn ones.

    That is colour transfer (`--color-transfer source`), and the page must not call it generated.
    """
    path = folder / "run.json"
    config = files.read_json(path, dict).get("config") if path.is_file() else None
    return isinstance(config, dict) and config.get("color_transfer") == "source"


def gather(workspace: Path, per_condition: int) -> dict[str, Any]:
    """Collect everything the template shows."""
    from pipeline.reporting import images
    from pipeline.reporting import scores as numbers

    generated = images.samples_of(workspace / "generated")
    variants = {
        name: images.samples_of(workspace / "variants" / name)
        for name in ("plain", "no_fusion", "no_swap")
    }
    plain = variants["plain"] or generated  # without the details of the source
    scores = numbers.read_scores(workspace / "scores.json")
    stages = stage_lines(workspace)
    rows = numbers.table(scores)
    recolored = is_recolored(workspace / "generated")
    return {
        "recolored": recolored,
        "title": workspace.name,
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "facts": header(generated, rows, scores, stages, recolored),
        "legend": images.legend(),
        "conditions": images.condition_sheet(
            generated, workspace / "data" / "source", per_condition
        ),
        "collection": images.collection_sheet(images.samples_of(workspace / "data" / "collection")),
        "targets": images.target_sheet(
            {path.name: path for path in sorted((workspace / "data" / "targets").glob("*"))}
        ),
        "details": images.comparison(
            generated, variants["plain"], ("as drawn", "with the source's details")
        ),
        "close_ups": images.close_ups(plain, variants["no_fusion"]),
        "swaps": images.comparison(
            plain,
            variants["no_swap"],
            ("without Style Swap (U_S + C)", "with Style Swap (U_P + C)"),
        ),
        "arms": [numbers.title(arm, recolored) for arm in scores],
        "table": rows,
        "bars": numbers.class_bars(scores, recolored),
        "stages": stages,
        "total_s": sum(s["seconds"] for s in stages),
        "machine": machine(),
    }


def header(
    generated: list[Any],
    rows: list[Any],
    scores: dict[str, Any],
    stages: list[dict[str, Any]],
    recolored: bool,
) -> list[tuple[str, str]]:
    """Return the big numbers of the page's top as (number, what it is)."""
    from pipeline.reporting.scores import title

    facts = []
    made = "recoloured source" if recolored else "generated"
    if generated:
        what = "source images in generated colours" if recolored else "labelled images generated"
        facts.append((str(len(generated)), what))
        conditions = {str(s.row.get("condition")) for s in generated}
        facts.append((str(len(conditions)), "conditions"))
    if rows:
        for arm, cell in zip(scores, rows[-1].cells, strict=True):
            if cell.value is not None and arm in ("source_only", "source_generated"):
                words = title(arm, recolored)
                facts.append((f"{cell.value:.1f}", f"mean mIoU over the targets, {words}"))
            if cell.delta is not None and arm == "source_generated":
                facts.append((f"{cell.delta:+.1f}", f"points from {made} images"))
    if stages:
        facts.append((f"{sum(s['seconds'] for s in stages) / 60:.1f} min", "for all stages"))
        peak = max(s["peak_mb"] for s in stages) / 1024
        facts.append((f"{peak:.1f} GB", "peak memory of a process"))
    return facts


def render(context: dict[str, Any]) -> str:
    """Fill the template in; every text is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).resolve().parent / "reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(**context)


def is_report(path: Path) -> bool:
    """Tell whether a regular file begins as a report does."""
    with open(path, "rb") as handle:
        start = handle.read(2000)
    return b"<!doctype html>" in start and b"<title>Streetforge: " in start


def main() -> int | None:
    """Write the report."""
    config, call = parse(Config, __doc__)
    if not config.workspace.is_dir():
        raise UserError(f"{config.workspace}: no such folder; run pipeline/run.py first")
    if config.per_condition < 1:
        raise UserError(f"--per-condition {config.per_condition}: must be 1 or more")
    output = Path(config.output) if config.output else config.workspace / "report.html"
    if call.dry_run:
        show(config)
        print(f"would write {output}")
        return 0
    open_output_file(output, is_report, "report")
    text = render(gather(config.workspace.resolve(), config.per_condition))
    page = text.encode(errors="xmlcharrefreplace")  # names of files may hold what is no text
    if len(page) > LARGEST_MB * 1_000_000:
        raise UserError(f"{output}: would be larger than {LARGEST_MB} MB; lower --per-condition")
    files.write_bytes(output, page)
    print(f"{output}: {len(page) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    guard(main)
