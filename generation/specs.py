"""From a plan item to what the sampler needs: the label map is read and cropped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from generation.label_maps import LabelMap, LabelMapFolder
from generation.plan import Crop, PlanItem, noise_seed, place_crop
from generation.prompts import Grammar, join_classes, render_prompt, render_style
from generation.samples import SampleSpec
from pipeline.labels import CLASS_NAMES
from pipeline.seeding import numpy_generator


@dataclass(frozen=True)
class SpecReader:
    """Reads the label map of a plan item and returns its `SampleSpec`."""

    folder: LabelMapFolder
    label_maps: Sequence[LabelMap]
    grammar: Grammar
    seed: int
    """Seed of the run."""
    crop_px: tuple[int, int]
    min_rare_share: float
    """Share of the crop that a rare class should cover, see `place_crop`."""
    with_source: bool
    """Read the source image too."""
    metadata: dict[str, Any]
    """What all rows have in common."""
    first_attempts: Mapping[int, int] = field(default_factory=dict)
    """The attempt with which a sample begins, by index; 0 for those that are not named."""

    def read(self, item: PlanItem, retries: int = 0) -> SampleSpec:
        """Return the sample of a plan item after some retries; each has a seed of its own."""
        label_map = self.label_maps[item.label_map]
        whole = self.folder.read(label_map.name)
        spec = self.describe(item, whole, retries)
        if not self.with_source:
            return spec
        size = (label_map.height, label_map.width)
        image = self.folder.read_source_image(item.label_map, size)
        return replace(spec, source=Crop(*spec.metadata["crop"]).of(image))

    def describe(self, item: PlanItem, whole: np.ndarray, retries: int = 0) -> SampleSpec:
        """Return the sample of a plan item without its source image.

        `whole`: the item's HxW label map, train ids with void 255.
        """
        label_map = self.label_maps[item.label_map]
        crop = place_crop(
            whole, item, seed=self.seed, size=self.crop_px, min_share=self.min_rare_share
        )
        label, rare = crop.of(whole), item.rare_class
        rng = numpy_generator(self.seed, "class words", item.index)
        words = {"condition": item.condition, "time": item.time, "place": item.place}
        prompt = render_prompt(self.grammar, join_classes(label, self.grammar, rng), **words)
        origin = {
            **words,
            "style": render_style(self.grammar, **words),
            "rare_class": None if rare is None else CLASS_NAMES[rare],
            "rare_share": None if rare is None else round(float((label == rare).mean()), 4),
            "source_label": label_map.name,
            "source_size": [label_map.height, label_map.width],
            "crop": [crop.top, crop.left, crop.height, crop.width],
        }
        attempt = self.first_attempts.get(item.index, 0) + retries
        return SampleSpec(
            label=label,
            prompt=prompt,
            seed=noise_seed(self.seed, item.index, attempt),
            index=item.index,
            attempt=attempt,
            retries=retries,
            metadata=origin | self.metadata,
        )
