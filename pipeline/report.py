"""Write a self-contained HTML report of a workspace or of one dataset folder; it opens offline.

    python pipeline/report.py --workspace runs/pocket
    python pipeline/report.py --data runs/mine/generated --source runs/mine/source

Reads files only. Missing parts are left out with a note, so a report of an unfinished run works
too. A dataset folder may be generated, prepared or written by hand; with the scores of
generation/score.py the page ranks its images. At most 20 MB, for a folder of any size.
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
from pipeline.addresses import missing_folder
from pipeline.config import parse, show
from pipeline.dataset import open_dataset
from pipeline.errors import UserError, guard
from pipeline.output_files import open_output_file
from pipeline.reading import read_json
from pipeline.stage_records import read_record

TEMPLATE = "page.html.j2"
PACKAGES = ("streetforge", "torch", "diffusers", "transformers", "accelerate", "mmsegmentation",
            "mmengine", "numpy", "pillow")  # fmt: skip
LARGEST_MB = 20
LINKS_OF_DATASET = {
    "conditions": "conditions",
    "classes": "classes",
    "scores": "scores",
    "filtering": "filter",
    "histogram": "class histogram",
    "making": "failures, times, provenance",
}
LINKS_OF_WORKSPACE = {
    "targets": "scores on targets",
    **LINKS_OF_DATASET,
    "fusion": "fusion",
    "details": "details",
    "swap": "Style Swap",
    "collection": "collection",
    "domains": "targets",
    "stages": "stages",
}
ABOUT_WORKSPACE = (
    "Streetforge generates a labelled training set with many appearances from the label maps of "
    "one simulator. This page shows one run of the whole method: the images, and the scores of "
    "segmentation networks on five unseen targets. Run"
)


@dataclass(frozen=True)
class Config:
    """Settings of the report."""

    workspace: Path = Path("runs/pocket")
    """Folder of a pipeline run."""
    data: Path | None = None
    """Dataset folder to report on, in place of a workspace."""
    source: Path | None = None
    """With --data: dataset folder of the source images, whose classes and images are shown too."""
    quality: Path | None = None
    """With --data: output folder of generation/score.py. None: `quality` in the dataset folder."""
    output: str = ""
    """HTML file to write; empty is report.html in the workspace or dataset folder."""
    per_condition: int = 2
    """Images shown for each condition."""


def machine() -> dict[str, str]:
    """Return what the run was made on."""
    machine = {
        "system": f"{platform.system()} {platform.machine()}",
        "CPU threads": str(os.cpu_count()),
        "Python": platform.python_version(),
    }
    for name in PACKAGES:
        try:
            machine[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return machine


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
    """Return whether the images of a set are source images in the colours of generated ones.

    That is colour transfer (`--color-transfer source`), and the page must not call it generated.
    """
    path = folder / "run.json"
    config = read_json(path, dict).get("config") if path.is_file() else None
    return isinstance(config, dict) and config.get("color_transfer") == "source"


def gather(workspace: Path, per_condition: int) -> dict[str, Any]:
    """Collect everything that the page of a workspace shows."""
    from pipeline.reporting import images
    from pipeline.reporting import scores as numbers
    from pipeline.reporting.dataset_page import sections

    folder, source = workspace / "generated", workspace / "data" / "source"
    generated = images.samples_of(folder)
    variants = {
        name: images.samples_of(workspace / "variants" / name)
        for name in ("recolored", "no_fusion", "no_swap")
    }
    scores = numbers.read_scores(workspace / "scores.json")
    stages = stage_lines(workspace)
    rows = numbers.table(scores)
    recolored = is_recolored(folder)
    data = None
    if generated:
        data = sections(
            folder, generated, source=source, scores=folder / "quality",
            per_condition=per_condition, what="Generated images",
        ) | {"alone": False}  # fmt: skip
    return {
        **frame("workspace.html.j2", workspace, header(generated, rows, scores, stages, recolored)),
        "links": links(LINKS_OF_WORKSPACE, data),
        "heading": "Streetforge",
        "about": ABOUT_WORKSPACE,
        "recolored": recolored,
        "data": data,
        "collection": images.collection_sheet(images.samples_of(workspace / "data" / "collection")),
        "targets": images.target_sheet(
            {path.name: path for path in sorted((workspace / "data" / "targets").glob("*"))}
        ),
        "details": images.comparison(
            variants["recolored"], generated, ("generated image", "recoloured source image")
        ),
        "close_ups": images.close_ups(generated, variants["no_fusion"]),
        "swaps": images.comparison(
            generated,
            variants["no_swap"],
            ("without Style Swap (U_S + C)", "with Style Swap (U_P + C)"),
        ),
        "arms": [numbers.title(arm, recolored) for arm in scores],
        "table": rows,
        "bars": numbers.class_bars(scores, recolored),
        "stages": stages,
        "total_s": sum(s["seconds"] for s in stages),
    }


def frame(body: str, folder: Path, figures: list[tuple[str, str]]) -> dict[str, Any]:
    """Return what every page shows."""
    from pipeline.reporting import images

    return {
        "body": body,
        "title": folder.name,
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "figures": figures,
        "legend": images.legend(),
        "machine": machine(),
    }


def links(sections: dict[str, str], data: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Return (id, text) of the sections that the page has."""
    absent: set[str] = set()
    if data is None or not data["labelled"]:
        absent |= {"classes", "scores", "histogram"}
    if data is None or not data["filtering"]:
        absent.add("filtering")
    if data is None:
        absent.add("making")
    return [(place, text) for place, text in sections.items() if place not in absent]


def gather_dataset(config: Config, folder: Path) -> dict[str, Any]:
    """Collect everything that the page of one dataset folder shows."""
    from pipeline.reporting.dataset_page import sections

    samples = open_dataset(folder, labelled=False)
    scores = config.quality or folder / "quality"
    data = sections(
        folder, samples, source=config.source, scores=scores,
        per_condition=config.per_condition, what="Images",
    )  # fmt: skip
    failed = sum(line["count"] for line in data["failures"])
    figures = [(f"{len(samples):,}", "samples")]
    figures.append((str(len({s.condition for s in samples})), "conditions"))
    if failed:
        figures.append((f"{failed:,}", "failed, withdrawn or excluded"))
    if data["scores"]:
        figures += [
            (f"{one['miou']:.1f}", f"mIoU of images and labels, {one['name']}")
            for one in data["scores"]["groups"][0]["networks"]
            if one["miou"] is not None
        ]
    return {
        **frame("dataset.html.j2", folder, figures),
        "links": links(LINKS_OF_DATASET, data),
        "heading": folder.name,
        "about": "Images and label maps of the dataset folder",
        "recolored": is_recolored(folder),
        "data": data | {"alone": True},
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

    figures = []
    made = "recoloured source" if recolored else "generated"
    if generated:
        what = "source images in generated colours" if recolored else "labelled images generated"
        figures.append((str(len(generated)), what))
        conditions = {str(s.row.get("condition")) for s in generated}
        figures.append((str(len(conditions)), "conditions"))
    if rows:
        for arm, cell in zip(scores, rows[-1].cells, strict=True):
            if cell.value is not None and arm in ("source_only", "source_generated"):
                words = title(arm, recolored)
                figures.append((f"{cell.value:.1f}", f"mean mIoU over the targets, {words}"))
            if cell.delta is not None and arm == "source_generated":
                figures.append((f"{cell.delta:+.1f}", f"points from {made} images"))
    if stages:
        figures.append((f"{sum(s['seconds'] for s in stages) / 60:.1f} min", "for all stages"))
        peak = max(s["peak_mb"] for s in stages) / 1024
        figures.append((f"{peak:.1f} GB", "peak memory of a process"))
    return figures


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


def check(config: Config) -> Path:
    """Find bad settings before anything is read; return the folder to report on."""
    folder = config.data or config.workspace
    if config.data is None and (config.source or config.quality):
        raise UserError("--source, --quality: belong to --data; a workspace has its own")
    for path in (config.data, config.source, config.quality):
        if path is not None and not path.is_dir():
            raise missing_folder(path, "check the path")
    if not folder.is_dir():
        raise missing_folder(folder, "run pipeline/run.py first")
    if config.per_condition < 1:
        raise UserError(f"--per-condition {config.per_condition}: must be 1 or more")
    return folder


def main() -> int | None:
    """Write the report."""
    config, call = parse(Config, __doc__)
    folder = check(config)
    output = Path(config.output) if config.output else folder / "report.html"
    if call.dry_run:
        show(config)
        print(f"would write {output}")
        return 0
    open_output_file(output, is_report, "report")
    folder = folder.resolve()
    if config.data is None:
        text = render(gather(folder, config.per_condition))
    else:
        text = render(gather_dataset(config, folder))
    page = text.encode(errors="xmlcharrefreplace")  # names of files may hold what is no text
    if len(page) > LARGEST_MB * 1_000_000:
        raise UserError(f"{output}: would be larger than {LARGEST_MB} MB; lower --per-condition")
    files.write_bytes(output, page)
    print(f"{output}: {len(page) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    guard(main)
