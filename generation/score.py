"""Score the images of a dataset folder: do they show their labels and prompts, are they varied?

    accelerate launch generation/score.py --data runs/mine/generated \\
        --segmenters runs/mine/segtrain/source --source runs/mine/source --costs

Writes one row per sample to OUTPUT/data.jsonl, and summary.json and summary.md. The files of the
dataset are not changed. Label fidelity is the IoU between the label map and the prediction of a
segmentation network; its upper bound (`ceiling`) is the score of the same network on source images.
Further measures have their own settings: --looks (does the image show its condition), --features
(variety), --reference (distances). The same command continues a stopped run and scores samples that
are new or changed. A second one into the same OUTPUT is refused while the first is at work.
On several CPU processes: torchrun --nproc-per-node 2 -- generation/score.py ...; on a Ray cluster:
python generation/score.py --ray ADDRESS ...
"""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from generation.quality import score_rows
from generation.quality.settings import Config, check_settings, open_parts, segmenter_names
from pipeline import files
from pipeline.claims import sole_writer
from pipeline.config import parse, to_mapping
from pipeline.dataset import Sample, check_dataset, open_dataset
from pipeline.errors import PREFIX, UserError, guard
from pipeline.identity import data_revision, model_revision
from pipeline.score_rows import Row

if TYPE_CHECKING:
    from accelerate import Accelerator

NOT_IN_IDENTITY = (
    "data", "output", "limit", "source", "reference", "looks", "segmenters", "ray", "ray_workers",
)  # fmt: skip


def check_inputs(config: Config) -> tuple[dict[str, list[Sample]], list[Sample]]:
    """Find bad input before any network loads; return the samples of each part, and of --looks."""
    check_settings(config)
    if config.limit is not None and config.output is None:
        raise UserError("--limit: scores a part of the set; give --output a folder of its own")
    parts = open_parts(config)
    looks = open_dataset(config.looks, labelled=False) if config.looks else []
    check_dataset(looks)
    return parts, looks


def identity_of(
    config: Config, parts: dict[str, list[Sample]], looks: list[Sample]
) -> dict[str, Any]:
    """Return what all rows of an output folder have in common; the data may grow."""
    identity = {k: v for k, v in to_mapping(config).items() if k not in NOT_IN_IDENTITY}
    identity["segmenters"] = {n: model_revision(f) for n, f in segmenter_names(config).items()}
    for name in ("source", "reference"):
        identity[name] = data_revision(parts[name]) if name in parts else None
    identity["looks"] = data_revision(looks) if looks else None
    return identity


def run(config: Config, parts: dict[str, list[Sample]], looks: list[Sample]) -> int:
    """Score what is missing; then the main process writes the summary.

    Returns 0, or the code of a stop signal.
    """
    from pipeline import runs

    accelerator = runs.start_accelerator()
    alone = sole_writer(config.folder) if accelerator.is_main_process else nullcontext()
    with alone:
        runs.open_run(
            config.folder, identity_of(config, parts, looks), is_main=accelerator.is_main_process
        )
        stop_code = score_missing(config, parts, looks, accelerator)
    runs.end(accelerator)
    return stop_code


def score_missing(
    config: Config, parts: dict[str, list[Sample]], looks: list[Sample], accelerator: "Accelerator"
) -> int:
    """Train the classifiers, score the blocks of this process, and write the summary.

    Returns 0, or the code of a stop signal.
    """
    from generation.quality import classifiers, judges, ray_scoring

    folder, size, is_main = config.folder, config.batch_size, accelerator.is_main_process
    attributes = config.attributes if looks else ()

    # Classifiers of attributes
    if looks:
        classifiers.check(looks, attributes)
    if is_main and looks:
        classifiers.train(folder, looks, attributes)
    accelerator.wait_for_everyone()
    known, record = classifiers.load(folder, attributes) if looks else ({}, {})

    # Rows, of this process or of the cluster
    if config.ray and (stop_code := ray_scoring.score_parts(config, parts, known)):
        print(f"{PREFIX}{folder}: stopped; the same command continues", file=sys.stderr)
        return stop_code
    share = (accelerator.process_index, accelerator.num_processes)
    is_missing = any(judges.missing_blocks(n, s, folder, size)[0] for n, s in parts.items())
    loaded = judges.Judges(config, accelerator.device, known) if is_missing else None
    for name, samples in parts.items():
        judges.score_part(loaded, name, samples, folder, share, size)
    accelerator.wait_for_everyone()

    # Summary of all rows
    if is_main:
        rows = {name: score_rows.merge(folder, name, samples) for name, samples in parts.items()}
        write_summary(config, parts, rows, {k: v["heldout"] for k, v in record.items()})
    return 0


def write_summary(
    config: Config,
    parts: dict[str, list[Sample]],
    rows: dict[str, list[Row]],
    heldout: dict[str, Any],
) -> None:
    """Write summary.json and summary.md, and print the latter."""
    from generation.quality import sets, summary, tables

    folder = config.folder
    features = {
        name: score_rows.read_features(folder, name, parts[name], config.features)
        for name in ("data", "reference")
        if name in parts and config.features
    }
    named = {
        sample.id: {
            name: str(sample.row[name])
            for name in config.attributes
            if sample.row.get(name) is not None
        }
        for sample in parts["data"]
    }
    found = summary.summarise(rows["data"], rows.get("source", []), named)
    found |= sets.measure(
        parts["data"],
        rows["data"],
        features.get("data", {}),
        features.get("reference", {}),
        config.duplicate_bits,
    )
    found |= {"data": str(config.data), "heldout": heldout}
    text = tables.markdown(found)
    files.write_json(folder / "summary.json", found)
    files.write_bytes(folder / "summary.md", text.encode())
    print(text)


def main() -> int | None:
    """Run the command line."""
    config, call = parse(Config, __doc__)
    parts, looks = check_inputs(config)
    if call.dry_run:
        for name, samples in parts.items():
            print(f"would score {len(samples)} images of {name} into {config.folder}")
        return 0
    return run(config, parts, looks)


if __name__ == "__main__":
    guard(main)
