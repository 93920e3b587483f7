"""Export to COCO's panoptic format.

Labels hold classes, not objects. So every connected region of a thing class becomes a segment:
cars that touch are one. Stuff classes have one segment per image; void is 0, as the format says.
Category ids are train ids.
"""

from pathlib import Path
from typing import Any

import numpy as np

from pipeline import files, labels
from pipeline.exports.job import Job, place_all
from pipeline.images import encode_png
from pipeline.parallel import in_processes

FIRST_THING = 11  # person; all classes from here on are things in Cityscapes


def find_segments(label: np.ndarray) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Return the segment ids of a label, HxW int32 from 1 on, and what COCO says of each one."""
    import cv2

    ids = np.zeros(label.shape, dtype=np.int32)
    infos: list[dict[str, Any]] = []
    for class_id in np.flatnonzero(labels.count_classes(label)).tolist():
        mask = (label == class_id).astype(np.uint8)
        if class_id >= FIRST_THING:  # connected regions; row 0 of the statistics is the rest
            _, parts, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
            boxes = statistics[1:]
        else:
            parts, boxes = mask, [[*cv2.boundingRect(mask), mask.sum()]]
        ids += np.where(parts > 0, parts + np.int32(len(infos)), 0)
        for *box, area in (map(int, values) for values in boxes):
            info = {"id": len(infos) + 1, "category_id": class_id, "iscrowd": 0}
            infos.append({**info, "bbox": box, "area": area})
    return ids, infos


def write_segments(item: tuple[Path, Path]) -> dict[str, Any]:
    """Write the panoptic PNG (id = R + 256 G + 65536 B) of a label; return size and segments."""
    import cv2

    cv2.setNumThreads(1)
    source, target = item
    label = labels.read_label(source)
    ids, infos = find_segments(label)
    if not target.exists():
        colors = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)
        files.write_bytes(target, encode_png(colors))
    return {"height": label.shape[0], "width": label.shape[1], "segments_info": infos}


def write_coco_panoptic(job: Job) -> str:
    """Write <split>/, panoptic_<split>/ and annotations/panoptic_<split>.json."""
    from tqdm import tqdm

    split, suffixes = job.split, [sample.image.suffix.lower() for sample in job.samples]
    names = [place for place, _ in job.places()]
    image_names = [f"{name}{suffix}" for name, suffix in zip(names, suffixes, strict=True)]
    place_all(
        job,
        [(s.image, job.output / split / p) for s, p in zip(job.samples, image_names, strict=True)],
    )
    target = job.output / f"annotations/panoptic_{split}.json"
    if target.exists():
        return f"annotations: {target}"
    items = [
        (sample.label, job.output / f"panoptic_{split}" / f"{name}.png")
        for name, sample in zip(names, job.samples, strict=True)
    ]
    images, annotations = [], []
    found = in_processes(write_segments, items, job.workers, chunk=8)
    shown = tqdm(found, "labels", len(items), disable=None)
    for number, (name, image_name, info) in enumerate(
        zip(names, image_names, shown, strict=True), 1
    ):
        segments = info.pop("segments_info")
        images.append({"id": number, "file_name": image_name, **info})
        annotation = {"image_id": number, "file_name": f"{name}.png", "segments_info": segments}
        annotations.append(annotation)
    categories = [
        {"id": i, "name": name, "isthing": int(i >= FIRST_THING), "color": color}
        for i, (name, color) in enumerate(
            zip(labels.CLASS_NAMES, labels.PALETTE.tolist(), strict=True)
        )
    ]
    note = "things are connected regions of one class: objects that touch are one segment"
    record = {"info": {"description": note}, "licenses": [], "categories": categories}
    files.write_json(target, {**record, "images": images, "annotations": annotations})
    return f"annotations: {target}"
