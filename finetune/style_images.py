"""Style images: the source in the colours of other images, with their words in its captions.

A ControlNet that is trained on one look learns the colours of that look together with the layout,
and then gives them to every image it controls. If the crops of the source take on the colours of
images of many looks, and the captions name the look, the text explains the colours and the label
map the layout. Style images need a caption and no labels: photographs, or images that the base
model generates from prompts alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.captions import drop_empty_parts
from pipeline.dataset import Sample, open_dataset
from pipeline.errors import UserError
from pipeline.images import read_image
from pipeline.origins import refuse_test_data
from pipeline.row_colors import transfer_row_colors
from pipeline.setting_checks import require_each_once

FLAG = "--style-images"
PLACEHOLDER = "{style}"


class Style(NamedTuple):
    """One style image."""

    image: np.ndarray
    """HxWx3 uint8"""
    text: str
    """words for the caption of a crop in this style"""

    def recolor(self, image: np.ndarray) -> np.ndarray:
        """Return an HxWx3 uint8 image in the colours of this style, at its own size."""
        return transfer_row_colors(image, self.image)


@dataclass(frozen=True)
class StyleImages:
    """Samples style images uniformly."""

    samples: list[Sample]

    def __call__(self, rng: np.random.Generator) -> Style:
        """Return a random style image."""
        sample = self.samples[int(rng.integers(len(self.samples)))]
        return Style(read_image(sample.image), style_text(sample))

    def longest(self, num_tokens: Callable[[str], int]) -> Sample:
        """Return the first style image of those whose words have the most tokens."""
        distinct: dict[str, Sample] = {}
        for sample in self.samples:
            distinct.setdefault(style_text(sample), sample)
        return distinct[max(distinct, key=num_tokens)]


def style_text(sample: Sample) -> str:
    """Return the `style` of a metadata row, which may be empty, or else its caption."""
    style = sample.row.get("style")
    return sample.caption if style is None else style


def check_words(sample: Sample, setting: str) -> None:
    """Raise `UserError` unless a metadata row has words of its style; `setting` holds {style}."""
    style = sample.row.get("style")
    if style is None and not sample.caption:
        raise UserError(
            f"{FLAG} {sample.folder}: row {sample.id} has neither `style` nor `prompt`; add one, "
            f"or leave {PLACEHOLDER} out of {setting}"
        )
    if style is not None and not isinstance(style, str):
        raise UserError(
            f"{FLAG} {sample.folder}: `style` of row {sample.id} is no text; correct the row, or "
            f"leave {PLACEHOLDER} out of {setting}"
        )


def fill_style(template: str, style: str) -> str:
    """Return a template with `style` in place of {style}; an empty one vanishes with its comma."""
    filled = template.replace(PLACEHOLDER, style)
    return filled if style or PLACEHOLDER not in template else drop_empty_parts(filled)


def open_style_images(folders: tuple[str, ...], setting: str, template: str) -> StyleImages | None:
    """Open the style images of dataset folders; None without folders.

    `template` is that of the captions, the value of `setting`. Raises `UserError` if it names
    {style} and there are no style images, or the row of one of them has no words, for test data of
    a target, and for a folder that is named twice.
    """
    if not folders:
        if PLACEHOLDER in template:
            raise UserError(
                f"{setting} {template!r}: {PLACEHOLDER} needs {FLAG}; name their folder, or leave "
                f"out {PLACEHOLDER}"
            )
        return None
    require_each_once(FLAG, folders)
    for folder in folders:
        refuse_test_data(Path(folder), FLAG)
    samples = [s for folder in folders for s in open_dataset(folder, labelled=False)]
    if PLACEHOLDER in template:
        for sample in samples:
            check_words(sample, setting)
    return StyleImages(samples)
