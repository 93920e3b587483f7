"""Images of the report: contact sheets, close-ups and pairs, as data URLs.

Everything is read from dataset folders. A folder that is not there yields an empty list.
"""

import base64
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline import labels, sample_views
from pipeline.dataset import Sample, open_dataset, read_pair
from pipeline.errors import UserError
from pipeline.images import read_image

SHOWN_PX = 400  # longest side of an image on the page
CLOSE_UP_PX = 40  # side of the square window before enlarging
CLOSE_UP_SCALE = 5
MOST_CONDITIONS = 24  # on one sheet


@dataclass(frozen=True)
class Figure:
    """An embedded image: `url` is a data URL, `text` its caption."""

    url: str
    text: str


def data_url(array: np.ndarray, *, exact: bool = False) -> str:
    """Encode HxWx3 uint8 as a data URL: JPEG, or PNG if `exact`."""
    if exact:
        buffer = io.BytesIO()
        Image.fromarray(array).quantize(256).save(buffer, format="PNG", optimize=True)
        kind, data = "png", buffer.getvalue()
    else:
        kind, data = "jpeg", sample_views.encode_jpeg(array)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def image_figure(image: np.ndarray, text: str) -> Figure:
    """Return a small copy of an image HxWx3."""
    return Figure(data_url(sample_views.shrink(image, SHOWN_PX)), text)


def label_figure(label: np.ndarray, text: str = "label") -> Figure:
    """Return a label map in the Cityscapes colours."""
    small = sample_views.shrink(label, SHOWN_PX)
    return Figure(data_url(labels.colorize(small), exact=True), text)


def samples_of(folder: Path) -> list[Sample]:
    """List the samples of a dataset folder, empty if it is not there or holds none yet.

    A folder that cannot be read is left out too, and said on stderr.
    """
    if not folder.is_dir():
        return []
    try:
        return open_dataset(folder, labelled=False)
    except UserError as error:
        print(f"notice: left out, {error}", file=sys.stderr)
        return []


def legend() -> list[tuple[str, str]]:
    """Return (class name, CSS colour) of all classes."""
    colours = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in labels.PALETTE.tolist()]
    return list(zip(labels.CLASS_NAMES, colours, strict=True))


def by_condition(samples: Sequence[Sample], per_condition: int) -> dict[str, list[Sample]]:
    """Return `per_condition` samples of every condition, spread over the set; conditions by name.

    Of more than `MOST_CONDITIONS` conditions those with most samples are taken.
    """
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(condition_of(sample), []).append(sample)
    largest = sorted(groups, key=lambda name: (-len(groups[name]), name))[:MOST_CONDITIONS]
    return {name: sample_views.spread(groups[name], per_condition) for name in sorted(largest)}


def condition_of(sample: Sample) -> str:
    """Return the condition that a row names, `none` without one."""
    return sample.condition or "none"


def collection_sheet(samples: Sequence[Sample], per_look: int = 2) -> list[Figure]:
    """Return images of every look of the unlabelled collection."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(str(sample.row.get("look", "")), []).append(sample)
    return [
        image_figure(read_image(s.image), s.caption or look)
        for look, group in sorted(groups.items())
        for s in group[:per_look]
    ]


def target_sheet(folders: dict[str, Path], per_target: int = 4) -> list[tuple[str, list[Figure]]]:
    """Return some images of every target that is there."""
    sheet = []
    for name, folder in folders.items():
        chosen = samples_of(folder)[:per_target]
        figures = [
            image_figure(read_image(s.image), str(s.row.get("condition", ""))) for s in chosen
        ]
        if figures:
            sheet.append((name, figures))
    return sheet


def pairs(
    first: Sequence[Sample], second: Sequence[Sample], limit: int
) -> list[tuple[Sample, Sample]]:
    """Pair samples of two folders by id where their labels are the same."""
    others = {s.id: s for s in second}
    same = []
    for sample in first:
        other = others.get(sample.id)
        if other and sample.row.get("label_sha256") == other.row.get("label_sha256"):
            same.append((sample, other))
    return same[:limit]


def comparison(
    after: Sequence[Sample], before: Sequence[Sample], texts: tuple[str, str]
) -> list[list[Figure]]:
    """Return (label, before, after) of up to six samples, one per condition.

    `texts`: captions of the images before and after.
    """
    rows: list[list[Figure]] = []
    seen: set[str] = set()
    for new, old in pairs(after, before, len(after)):
        condition = str(new.row.get("condition", ""))
        if condition in seen or len(rows) == 6:
            continue
        seen.add(condition)
        image, label = read_pair(new)
        rows.append(
            [
                label_figure(label, new.caption),
                image_figure(read_image(old.image), texts[0]),
                image_figure(image, texts[1]),
            ]
        )
    return rows


def close_ups(
    fused: Sequence[Sample], plain: Sequence[Sample], limit: int = 6
) -> list[list[Figure]]:
    """Return enlarged (label, without fusion, with fusion) windows around small objects."""
    rows: list[list[Figure]] = []
    for with_fusion, without in pairs(fused, plain, len(fused)):
        image, label = read_pair(with_fusion)
        corner = sample_views.small_object_window(label, CLOSE_UP_PX)
        other = read_image(without.image)
        if corner is None or other.shape != image.shape:
            continue
        window = np.s_[corner[0] : corner[0] + CLOSE_UP_PX, corner[1] : corner[1] + CLOSE_UP_PX]
        present = labels.present_class_names(label[window])
        small = [n for n in present if labels.CLASS_NAMES.index(n) in labels.SMALL_CLASSES]
        colours = enlarge(labels.colorize(label[window]))
        rows.append(
            [
                Figure(data_url(colours, exact=True), ", ".join(small)),
                Figure(data_url(enlarge(other[window])), "without fusion"),
                Figure(data_url(enlarge(image[window])), "with fusion"),
            ]
        )
        if len(rows) == limit:
            break
    return rows


def enlarge(array: np.ndarray) -> np.ndarray:
    """Repeat the pixels of a window."""
    return array.repeat(CLOSE_UP_SCALE, axis=0).repeat(CLOSE_UP_SCALE, axis=1)
