"""Contact sheets of one dataset folder: by condition, by class, best and worst by score."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline import labels, parallel, sample_views
from pipeline.dataset import Sample, read_pair
from pipeline.errors import UserError
from pipeline.images import read_image
from pipeline.reporting.images import (
    Figure,
    by_condition,
    condition_of,
    data_url,
    image_figure,
    label_figure,
)

WINDOW_PX = 200  # least side of a close-up on the page
CAPTION = 240  # characters
THREADS = 2  # an image of 40 million pixels takes a gigabyte while it is worked on

Row = list[Figure]


@dataclass
class Sheets:
    """Makes figures of samples; a file that cannot be read is left out and kept in `problems`."""

    source: Path | None = None
    """Dataset folder whose label maps the samples were generated from."""
    problems: list[str] = field(default_factory=list)

    def _rows(self, samples: Sequence[Sample], show: Callable[[Sample], Row]) -> list[Row]:
        def attempt(sample: Sample) -> Row | str:
            try:
                return show(sample)
            except UserError as error:
                return str(error)

        with parallel.thread_pool(THREADS) as pool:
            shown = list(pool.map(attempt, samples))
        self.problems += [row for row in shown if isinstance(row, str)]
        return [row for row in shown if not isinstance(row, str)]

    def conditions(
        self, samples: Sequence[Sample], per_condition: int
    ) -> list[tuple[str, list[Row]]]:
        """Return (condition, rows of label, source image where it is known, and image)."""
        groups = by_condition(samples, per_condition)
        sheet = [(name, self._rows(chosen, self._triple)) for name, chosen in groups.items()]
        return [(name, rows) for name, rows in sheet if rows]

    def _triple(self, sample: Sample) -> Row:
        caption = shorten(sample.caption or sample.id)
        if sample.label is None:
            return [image_figure(read_image(sample.image), caption)]
        image, label = read_pair(sample)
        row = [label_figure(label)]
        source = sample_views.source_image(sample, self.source) if self.source else None
        if source is not None:
            row.append(image_figure(source, "source image"))
        return [*row, image_figure(image, caption)]

    def classes(
        self, samples: Sequence[Sample], pixels: np.ndarray, per_class: int
    ) -> list[tuple[str, int, list[Row]]]:
        """Return (class, number of samples that hold it, rows of one close-up each).

        `pixels`: NxK pixels of each class in each sample. Windows are of samples that hold no
        less of the class than half of its samples do.
        """
        sheet = []
        for class_id, name in enumerate(labels.CLASS_NAMES):
            holders = np.flatnonzero(pixels[:, class_id])
            if not holders.size:
                continue
            area = pixels[holders, class_id]
            chosen = sample_views.spread(holders[area >= np.median(area)].tolist(), per_class)

            def show(sample: Sample, class_id: int = class_id) -> Row:
                return class_window(sample, class_id)

            rows = self._rows([samples[index] for index in chosen], show)
            sheet.append((name, int(holders.size), rows))
        return sheet

    def ranked(self, samples: Sequence[Sample], texts: Sequence[str]) -> list[Row]:
        """Return rows of image, image under its label, and a close-up where objects are small."""
        captions = {sample.id: text for sample, text in zip(samples, texts, strict=True)}

        def show(sample: Sample) -> Row:
            return judged(sample, captions[sample.id])

        return self._rows(samples, show)


def judged(sample: Sample, text: str) -> Row:
    """Return image, image under its label, and a close-up of both around small objects."""
    image, label = read_pair(sample)
    mixed = sample_views.overlay(image, label)
    about = shorten(f"{sample.id}, {condition_of(sample)}")
    row = [image_figure(image, f"{about}: {text}"), image_figure(mixed, "image under its label")]
    side = sample_views.window_px(label)
    corner = sample_views.small_object_window(label, side)
    if corner is not None:
        window = np.s_[corner[0] : corner[0] + side, corner[1] : corner[1] + side]
        present = labels.present_class_names(label[window])
        small = [n for n in present if labels.CLASS_NAMES.index(n) in labels.SMALL_CLASSES]
        both = np.concatenate([image[window], mixed[window]], axis=1)
        row.append(Figure(data_url(enlarged(both)), ", ".join(small)))
    return row


def class_window(sample: Sample, class_id: int) -> Row:
    """Return the window with most pixels of a class, with the class's outline."""
    image, label = read_pair(sample)
    mask = label == class_id
    side = sample_views.window_px(label)
    if mask.sum() > side * side // 2:  # a large region is shown as a whole
        side = min(*label.shape)
    top, left, _ = sample_views.fullest_window(mask, side)
    window = np.s_[top : top + side, left : left + side]
    shown = enlarged(sample_views.shrink(image[window], 2 * WINDOW_PX))
    held = enlarged(sample_views.shrink(mask[window].astype(np.uint8), 2 * WINDOW_PX))
    caption = shorten(f"{condition_of(sample)}, {sample.id}")
    return [Figure(data_url(sample_views.outlined(shown, held)), caption)]


def enlarged(array: np.ndarray) -> np.ndarray:
    """Repeat the pixels of a close-up until its height is that of the page's windows."""
    times = max(1, -(-WINDOW_PX // array.shape[0]))
    return array.repeat(times, axis=0).repeat(times, axis=1)


def shorten(text: str) -> str:
    """Return a caption that leaves room for the image."""
    return text if len(text) <= CAPTION else f"{text[:CAPTION]}..."
