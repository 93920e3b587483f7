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

from pipeline import labels
from pipeline.dataset import Sample, open_dataset, read_pair
from pipeline.errors import UserError
from pipeline.images import read_image
from pipeline.paths import Enclosure, check_relative

JPEG_QUALITY = 88
CLOSE_UP_PX = 40  # side of the square window before enlarging
CLOSE_UP_SCALE = 5


@dataclass(frozen=True)
class Figure:
    """An embedded image: `url` is a data URL, `text` its caption."""

    url: str
    text: str


def data_url(array: np.ndarray, *, exact: bool = False) -> str:
    """Encode HxWx3 uint8 as a data URL: JPEG, or PNG if `exact`."""
    buffer = io.BytesIO()
    if exact:
        Image.fromarray(array).quantize(256).save(buffer, format="PNG", optimize=True)
        kind = "png"
    else:
        Image.fromarray(array).save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def label_figure(label: np.ndarray, text: str = "label") -> Figure:
    """Return a label map in the Cityscapes colours."""
    return Figure(data_url(labels.colorize(label), exact=True), text)


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
    """Return the first `per_condition` samples of every condition, conditions by name."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        group = groups.setdefault(str(sample.row.get("condition", "")), [])
        if len(group) < per_condition:
            group.append(sample)
    return dict(sorted(groups.items()))


def condition_sheet(
    samples: Sequence[Sample], source: Path, per_condition: int
) -> list[tuple[str, list[list[Figure]]]]:
    """Return (condition, triples of label, source image and generated image).

    The source image is the one the layout's label belongs to, at the crop used; it is left out
    where the layouts are not the source dataset.
    """
    sheet = []
    for condition, chosen in by_condition(samples, per_condition).items():
        rows = []
        for sample in chosen:
            image, label = read_pair(sample)
            row = [label_figure(label)]
            rendered = source_image(sample, source)
            if rendered is not None:
                row.append(Figure(data_url(rendered), "source render"))
            row.append(Figure(data_url(image), sample.caption))
            rows.append(row)
        sheet.append((condition, rows))
    return sheet


def source_image(sample: Sample, source: Path) -> np.ndarray | None:
    """Return the source image behind a generated sample, None if it is not known."""
    name = sample.row.get("source_label")
    try:
        check_relative(name)
        place = str(name).replace("labels/", "images/", 1)
        Enclosure(source).find(place)
    except (ValueError, UserError):
        return None
    image = read_image(source / place)
    crop = sample.row.get("crop")
    if crop is None:
        return image
    top, left, height, width = crop
    inside = 0 <= top < top + height <= image.shape[0] and 0 <= left < left + width
    if not inside or left + width > image.shape[1]:
        return None
    return image[top : top + height, left : left + width]


def collection_sheet(samples: Sequence[Sample], per_look: int = 2) -> list[Figure]:
    """Return images of every look of the unlabelled collection."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(str(sample.row.get("look", "")), []).append(sample)
    return [
        Figure(data_url(read_image(s.image)), s.caption or look)
        for look, group in sorted(groups.items())
        for s in group[:per_look]
    ]


def target_sheet(folders: dict[str, Path], per_target: int = 4) -> list[tuple[str, list[Figure]]]:
    """Return some images of every target that is there."""
    sheet = []
    for name, folder in folders.items():
        chosen = samples_of(folder)[:per_target]
        figures = [
            Figure(data_url(read_image(s.image)), str(s.row.get("condition", ""))) for s in chosen
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
                Figure(data_url(read_image(old.image)), texts[0]),
                Figure(data_url(image), texts[1]),
            ]
        )
    return rows


def small_object_window(label: np.ndarray, side: int) -> tuple[int, int] | None:
    """Return (top, left) of the square window with most small-class pixels, None if too few."""
    mask = np.isin(label, labels.SMALL_CLASSES)
    side = min(side, *label.shape)
    sums = np.pad(mask.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    inside = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    if inside.max() < side * side // 40:
        return None
    top, left = np.unravel_index(int(inside.argmax()), inside.shape)
    return int(top), int(left)


def close_ups(
    fused: Sequence[Sample], plain: Sequence[Sample], limit: int = 6
) -> list[list[Figure]]:
    """Return enlarged (label, without fusion, with fusion) windows around small objects."""
    rows: list[list[Figure]] = []
    for with_fusion, without in pairs(fused, plain, len(fused)):
        image, label = read_pair(with_fusion)
        corner = small_object_window(label, CLOSE_UP_PX)
        other = read_image(without.image)
        if corner is None or other.shape != image.shape:
            continue
        window = np.s_[corner[0] : corner[0] + CLOSE_UP_PX, corner[1] : corner[1] + CLOSE_UP_PX]
        present = labels.present_class_names(label[window])
        small = [n for n in present if labels.CLASS_NAMES.index(n) in labels.SMALL_CLASSES]
        colours = _enlarge(labels.colorize(label[window]))
        rows.append(
            [
                Figure(data_url(colours, exact=True), ", ".join(small)),
                Figure(data_url(_enlarge(other[window])), "without fusion"),
                Figure(data_url(_enlarge(image[window])), "with fusion"),
            ]
        )
        if len(rows) == limit:
            break
    return rows


def _enlarge(array: np.ndarray) -> np.ndarray:
    return array.repeat(CLOSE_UP_SCALE, axis=0).repeat(CLOSE_UP_SCALE, axis=1)
