"""Turn a dataset of the catalogue into a dataset folder that every stage reads.

    python pipeline/prepare.py --dataset gta --root /data/gta --split all --output runs/data/gta
    python pipeline/prepare.py --dataset acdc --root /data/acdc --split val --condition night \\
        --output runs/data/acdc_night --policy skip

All files are checked first (pipeline/preflight.py). Bad files are listed and stop the run;
`--policy skip` leaves them out instead. Labels are converted to train ids. Images are hard links,
which take no space, or copies if the file system has no hard links or with `--copy-images True`.
`--symlink-images True` links to the images; readers follow such links only into folders that
STREETFORGE_STORES names. The rows of `metadata*.jsonl` contain the pixels of each class, which rare
class sampling reads; `class_stats.json` contains their sums. `--field-files True` also writes the
files that DAFormer, HRDA and DGInStyle read. The same command continues an interrupted run, and
does nothing when all is done. Only `--write-into-source True` writes to the source folder.
"""

import functools
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np

from pipeline import __version__, class_stats, files, images, label_spaces, labels
from pipeline.catalogue.changes import require_unchanged
from pipeline.catalogue.checks import Fault, check_listing
from pipeline.catalogue.specs import (
    DERIVED,
    DatasetSpec,
    Listing,
    Pair,
    Selection,
    open_selection,
    protocol_record,
)
from pipeline.config import differences, digest, parse, show
from pipeline.dataset import prove_checked
from pipeline.dataset_writer import SHARD_SIZE, DatasetWriter, write_card
from pipeline.errors import EXIT_INCOMPLETE, UserError, guard
from pipeline.exports.daformer import write_daformer_files
from pipeline.folder_lock import lock_folder
from pipeline.markdown import code, plain
from pipeline.metadata import read_rows
from pipeline.origins import kept_by_copies
from pipeline.output_folders import (
    DATASET,
    check_output,
    require_apart,
    stored_config,
)
from pipeline.parallel import MOST_WORKERS, in_processes
from pipeline.paths import STORES_VARIABLE, is_declared
from pipeline.preflight import report
from pipeline.rows import sample_id
from pipeline.setting_checks import require_between

REMEDY = "repair or remove them, or leave them out with --policy skip"


@dataclass(frozen=True)
class Config(Selection):
    """What to prepare, and how."""

    output: str = ""
    """dataset folder to write"""
    workers: int = 2
    """processes"""
    policy: Literal["stop", "skip"] = "stop"
    """on bad files: stop the run, or skip their pairs (exit code 3)"""
    copy_images: bool = False
    """copy the images, so that later changes of the source do not reach the folder"""
    symlink_images: bool = False
    """link to the images where they are; all programs then need STREETFORGE_STORES=ROOT"""
    field_files: bool = False
    """also write *_labelTrainIds.png, sample_class_stats.json and samples_with_class.json"""
    write_into_source: bool = False
    """write the files of --field-files into the source folder, where that code reads them"""


def convert(
    job: tuple[int, Pair], *, folder: Path, label_space: str, how: files.Placing
) -> dict[str, Any] | Fault:
    """Write the label (and image) of one pair and return its row, or its fault."""
    index, pair = job
    try:
        label = labels.read_label(pair.label, label_spaces.label_space(label_space))
    except UserError as error:
        return Fault(pair.label, str(error).removeprefix(f"{pair.label}: "))
    stem = f"{index // SHARD_SIZE:04d}/{sample_id(index)}"
    encoded, label_name = images.encode_png(label), f"labels/{stem}.png"
    image_name = f"images/{stem}{pair.image.suffix.lower()}"
    files.write_bytes(folder / label_name, encoded)
    files.place(pair.image, folder / image_name, how)
    image = images.read_file(folder / image_name)
    return {
        "id": sample_id(index),
        "status": "ok",
        "image_file_name": image_name,
        "label_file_name": label_name,
        "image_sha256": files.sha256(image),
        "label_sha256": files.sha256(encoded),
        "height": label.shape[0],
        "width": label.shape[1],
        "class_pixels": labels.count_classes(label).tolist(),
        **pair.attributes,
    }


def placing(config: Config) -> files.Placing:
    """Return how images come into the output; links that no reader would follow are refused."""
    if config.copy_images and config.symlink_images:
        raise UserError("--symlink-images: --copy-images is given too; choose one of them")
    root = os.path.realpath(config.root)
    if config.symlink_images and not is_declared(root):
        raise UserError(
            f"--symlink-images: links that leave the folder are followed only if {STORES_VARIABLE} "
            f"names where they lead; set {STORES_VARIABLE}={root} here and for later programs"
        )
    return "copy" if config.copy_images else "symlink" if config.symlink_images else "hard"


def say_copies(config: Config, listing: Listing, folder: Path) -> None:
    """Say it if images must be copied."""
    if placing(config) == "hard" and not files.can_link(listing.pairs[0].image, folder):
        print(
            f"notice: {folder}: {len(listing.pairs)} images are copied, the file system gives no "
            "hard links to them; --symlink-images True leaves them where they are",
            file=sys.stderr,
        )


def convert_all(
    config: Config, writer: DatasetWriter, listing: Listing, faults: list[Fault]
) -> list[Fault]:
    """Convert what has no row yet and no fault; return all faults, newly found ones last."""
    from tqdm import tqdm

    bad = {fault.path: fault for fault in reversed(faults)}
    old, jobs, rejected = read_rows(writer.folder), [], {}
    for index, pair in enumerate(listing.pairs):
        if fault := bad.get(pair.image) or bad.get(pair.label):
            rejected[index] = fault
        elif old.get(sample_id(index), {}).get("status") != "ok":
            jobs.append((index, pair))
    work = functools.partial(
        convert,
        folder=writer.folder,
        label_space=listing.label_space,
        how=placing(config),
    )
    results = in_processes(work, jobs, config.workers, chunk=8)
    for (index, _), result in zip(jobs, tqdm(results, "labels", len(jobs)), strict=True):
        if isinstance(result, Fault):
            rejected[index] = result
            faults = [*faults, result]
        else:
            writer.append_row({**result, "digest": writer.digest})
    for index, fault in rejected.items() if config.policy == "skip" else ():
        row = old.get(sample_id(index), {})
        if row.get("status") != "ok" and row.get("error") != str(fault):  # not known before
            writer.write_failure(index, str(fault), listing.pairs[index].attributes)
    return faults


def look_at_some(listing: Listing, faults: list[Fault]) -> None:
    """Raise `UserError` if a few labels, spread over the set, hold no pixel of any class.

    So it does if none of them is to be read: a folder begun with the wrong label space would
    refuse the right one.
    """
    bad = {fault.path for fault in faults}
    good = [pair.label for pair in listing.pairs if pair.label not in bad]
    table = label_spaces.label_space(listing.label_space)
    pixels, total = class_stats.count_some(good, table)
    if good and not total:
        labels.read_label(good[0], table)
    if total and not pixels.any():
        class_stats.doubt(pixels, total, listing.label_space, f"{good[0]} and others")


def settings_of(config: Config, listing: Listing) -> dict[str, Any]:
    """Return what a finished folder depends on."""
    originals = [pair.attributes for pair in listing.pairs]  # what the YAML made of the tree
    return {
        "dataset": config.dataset,
        "root": str(Path(config.root).resolve()),
        "split": config.split,
        "condition": config.condition,
        "label_space": listing.label_space,
        "label_space_content": label_spaces.space_content(listing.label_space),
        "images": placing(config),
        "image_list": f"{len(originals)}, {digest(originals)}",  # ids number them
    }


def is_mapped_otherwise(settings: dict[str, Any], folder: Path) -> bool:
    """Tell whether a folder is of these settings, but of an earlier content of the label space."""
    stored = stored_config(folder, DATASET)  # the writer repairs a damaged one
    if stored is None:
        return False
    lines = differences(stored, settings)
    return bool(lines) and all(line.startswith("label_space_content") for line in lines)


def provenance_of(config: Config, spec: DatasetSpec, listing: Listing) -> dict[str, Any]:
    """Return what networks are scored by: sizes, role and own classes of the set.

    A copy of a dataset folder, or of a part of it, has those of that folder.
    """
    kept = {} if spec.layouts else kept_by_copies(Path(config.root))
    found: dict[str, Any] = {"streetforge": __version__, "protocol": {}, "role": spec.role, **kept}
    if sizes := protocol_record(spec):
        found["protocol"] = sizes
    if merged := label_spaces.merged_classes(listing.label_space):
        found["classes"] = merged.record()
    return found


def open_writer(
    config: Config, spec: DatasetSpec, listing: Listing, settings: dict[str, Any]
) -> DatasetWriter:
    """Open the output for this selection; another selection or file list is refused.

    If only the content of the label space changed, the rows go: all labels are converted again.
    """
    folder = Path(config.output).resolve()
    provenance = provenance_of(config, spec, listing)
    if is_mapped_otherwise(settings, folder):
        lock_folder(folder)  # before anything of another process is removed
        print(f"{folder}: {listing.label_space} was changed, all labels are converted again")
        for path in folder.glob("metadata*.jsonl"):
            path.unlink()
        record = {**provenance, "config": settings, "digest": digest(settings)}
        files.write_json(folder / "run.json", record)  # after the rows: nothing old is left
    writer = DatasetWriter(folder, config=settings, provenance=provenance)
    lock_folder(folder)
    files.sweep_temporaries(folder)
    return writer


def is_own_row(row: dict[str, Any]) -> bool:
    """Tell whether a row of `read_rows`, which checks kinds, has what `convert` puts into it."""
    name = row.get("original_label") or "/"
    inside = not Path(name).is_absolute() and ".." not in Path(name).parts
    return inside and None not in (row.get("class_pixels"), row.get("height"), row.get("width"))


def finish(
    config: Config, spec: DatasetSpec, folder: Path, label_space: str, known: set[str]
) -> int:
    """Write what follows from all rows and return their number; `known` were there before."""
    rows = [r for _, r in sorted(read_rows(folder).items()) if r.get("status") == "ok"]
    if not rows:
        raise UserError(f"{folder}: no pair was good; see the faults above")
    for row in rows:
        if not is_own_row(row):
            raise UserError(
                f"{folder}: row {row['id']} is not one that this program wrote; prepare the set in "
                "another folder"
            )
    pixels = np.array([row["class_pixels"] for row in rows]).sum(axis=0)
    total = sum(row["height"] * row["width"] for row in rows)
    class_stats.doubt(pixels, total, label_space, str(folder))
    class_stats.write_class_stats(folder, rows)
    prove_checked(folder, {row["id"] for row in rows} - known)
    if config.field_files or config.write_into_source:
        target = Path(config.root) if config.write_into_source else folder / "field_files"
        write_daformer_files(folder, rows, target, suffix=DERIVED)
    if not (folder / "README.md").exists():
        write_card(
            folder,
            f"{spec.title}: {config.split}",
            f"Labels as Cityscapes train ids. Licence of the source: {plain(spec.licence)}. "
            f"Cite: {plain(spec.citation)}. Made by "
            + code(f"python pipeline/prepare.py --dataset {config.dataset} --split {config.split}")
            + ".",
        )
    return len(rows)


def main() -> int | None:
    config, call = parse(Config, __doc__)
    require_between(config, 1, MOST_WORKERS, "workers")
    if call.dry_run:
        show(config)
        return None
    if not config.output:
        raise UserError("--output: no folder given; name the dataset folder to write")
    output = Path(config.output)
    if config.root and not config.write_into_source:
        way_out = ", or allow it with --write-into-source True"
        require_apart(output, {"--root": Path(config.root)}, way_out=way_out)
    check_output(output, DATASET)
    spec, listing = open_selection(config)
    num_pairs, faults = len(listing.pairs), []
    settings, done = settings_of(config, listing), []
    if not is_mapped_otherwise(settings, output):
        done = [r for r in read_rows(output).values() if r.get("status") == "ok"]
    if len(done) < num_pairs:
        faults = check_listing(listing, workers=config.workers)
        if config.policy == "stop":  # before anything is written
            report(faults, num_pairs, REMEDY)
        look_at_some(listing, faults)
    writer = open_writer(config, spec, listing, settings)
    require_unchanged(writer.folder, listing, done)
    if len(done) < num_pairs:
        say_copies(config, listing, writer.folder)
        faults = convert_all(config, writer, listing, faults)
        if config.policy == "stop":
            report(faults, num_pairs, REMEDY)
    known = {row["id"] for row in done}
    num_samples = finish(config, spec, writer.folder, listing.label_space, known)
    for fault in faults:
        print(fault)
    news = "nothing to do, " if len(done) == num_samples else ""
    print(f"{writer.folder}: {news}{num_samples} of {num_pairs} pairs are prepared")
    return EXIT_INCOMPLETE if num_samples < num_pairs else None


if __name__ == "__main__":
    guard(main)
