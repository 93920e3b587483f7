"""Exports that give images and labels their names in another layout, one file each."""

import json

from pipeline import files, labels
from pipeline.dataset import Sample
from pipeline.exports.daformer import write_daformer_stats
from pipeline.exports.job import (
    Job,
    image_suffix,
    place_all,
    place_pairs,
    table,
    write_hub_card,
    write_run,
)
from pipeline.parallel import in_processes


def write_mmseg(job: Job) -> str:
    """Write img_dir/, ann_dir/ and the dataset's entry for a config of mmsegmentation."""
    suffix, split = image_suffix(job), job.split
    place_pairs(job, f"img_dir/{split}/{{}}", f"ann_dir/{split}/{{}}")
    snippet = f"""# For a config of mmsegmentation: paste it, or name this file in `_base_`.
{split}_dataset = dict(
    type="BaseSegDataset",
    data_root={str(job.output.resolve())!r},
    data_prefix=dict(img_path="img_dir/{split}", seg_map_path="ann_dir/{split}"),
    img_suffix={suffix!r},
    seg_map_suffix=".png",
    metainfo=dict(
        classes={labels.CLASS_NAMES!r},
        palette={labels.PALETTE.tolist()!r},
    ),
    ignore_index={labels.VOID},
    reduce_zero_label=False,
    pipeline=[dict(type="LoadImageFromFile"), dict(type="LoadAnnotations")],
)
"""
    files.write_changed(job.output / f"{split}_dataset.py", snippet.encode())
    return f"dataset entry: {job.output}/{split}_dataset.py"


def class_pixels(sample: Sample) -> list[int]:
    """Return the pixels of each class of a sample, in a worker process."""
    return sample.class_pixels


def write_dginstyle(job: Job) -> str:
    """Write images/, labels/*_labelTrainIds.png and the class statistics of DAFormer's readers."""
    image_suffix(job)
    names = [f"labels/{sample.id}_labelTrainIds.png" for sample in job.samples]
    image_pairs = [
        (s.image, job.output / f"images/{s.id}{s.image.suffix.lower()}") for s in job.samples
    ]
    label_pairs = [
        (s.label, job.output / n) for s, n in zip(job.samples, names, strict=True) if s.label
    ]
    place_all(job, image_pairs, label_pairs)
    counts = in_processes(class_pixels, job.samples, job.workers)
    write_daformer_stats(job.output, zip(names, counts, strict=True))
    return "rare class sampling reads sample_class_stats.json and samples_with_class.json"


def write_imagefolder(job: Job) -> str:
    """Write a split that `datasets.load_dataset("imagefolder")` reads with image and label."""
    place_pairs(job, f"{job.split}/images/{{}}", f"{job.split}/labels/{{}}")
    lines = []
    for (place, sample), row in zip(job.places(), table(job.samples), strict=True):
        row["image_file_name"] = f"images/{place}{sample.image.suffix.lower()}"
        if sample.label:
            row["label_file_name"] = f"labels/{place}.png"
        lines.append(json.dumps(row) + "\n")
    write_run(job, job.output / job.split)  # first: without it, rows may pass for a training set
    files.write_changed(job.output / job.split / "metadata.jsonl", "".join(lines).encode())
    write_hub_card(job)
    return f'datasets.load_dataset("imagefolder", data_dir="{job.output}")'


def write_fiftyone(job: Job) -> str:
    """Write data/, labels/ and the names of the ids, as FiftyOne's importer of masks reads them."""
    image_suffix(job)
    place_pairs(job, "data/{}", "labels/{}")
    names = {str(i): name for i, name in enumerate(labels.CLASS_NAMES)} | {"255": "void"}
    files.write_changed(job.output / "mask_targets.json", files.json_bytes(names))
    return "fiftyone.types.ImageSegmentationDirectory; names of the ids: mask_targets.json"
