"""The samples that leave: what every layout asks of their names and files."""

import re
from dataclasses import replace
from pathlib import Path

from pipeline import images, labels, parallel
from pipeline.dataset import Sample, open_dataset, require_same_size
from pipeline.errors import UserError


def read_samples(data: str | Path, *, labelled: bool) -> list[Sample]:
    """List the samples, whose ids must be fit for names and whose files must be whole."""
    samples = open_dataset(data, labelled=labelled)
    seen: dict[str, str] = {}
    for sample in samples:
        if not re.fullmatch("[A-Za-z0-9_-]+", sample.id):
            raise UserError(
                f"{data}: id {sample.id!r} is not a file name that all readers split alike; "
                "use letters, digits, _ and -"
            )
        if (other := seen.setdefault(sample.id.lower(), sample.id)) != sample.id:
            raise UserError(
                f"{data}: ids {other} and {sample.id} differ in case only, which some "
                "file systems do not tell apart; rename one of them"
            )
        if sample.image.suffix.lower() not in images.SUFFIXES:
            known = ", ".join(images.SUFFIXES)
            raise UserError(f"{sample.image}: has none of the suffixes {known}; rename it")
    with parallel.thread_pool() as pool:
        return list(pool.map(check_files, samples))


def check_files(sample: Sample) -> Sample:
    """Return the sample, its row with the size of its image; damaged files are refused."""
    header = images.read_header(sample.image)
    size = header.width, header.height
    with images.naming(sample.image, "image"):
        images.check_image_mode(header.mode)
        if header.orientation != 1:
            raise UserError(
                f"has the EXIF orientation {header.orientation}, which some readers of exports "
                "obey and others do not; save it upright"
            )
    if sample.label:
        of_label = images.read_header(sample.label, "label")
        with images.naming(sample.label, "label"):
            labels.check_label_mode(of_label.mode, colors=False)
        require_same_size(size, (of_label.width, of_label.height), sample.label)
    return replace(sample, row={**sample.row, "width": size[0], "height": size[1]})
