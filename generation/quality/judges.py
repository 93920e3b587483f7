"""All that looks at images, loaded once, and the loop that gives each sample its row."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from generation.quality import features, fidelity, looks, pixels, score_rows, segmenters
from generation.quality.classifiers import Classifier
from generation.quality.settings import Config, segmenter_names
from pipeline import files, labels
from pipeline.dataset import Sample, require_same_size
from pipeline.images import read_image
from pipeline.latents import images_to_tensor
from pipeline.score_rows import Row, state_of


@dataclass(frozen=True)
class Block:
    """Samples that go through the networks together, and the position of the first in its set."""

    first: int
    samples: Sequence[Sample]


class Scored(NamedTuple):
    """What the networks say of a block: rows, and the files that belong to them."""

    rows: list[Row]
    contents: list[tuple[Path, bytes]]


class Judges:
    """The networks of a scoring. `classifiers` are those of the attributes, by their names."""

    def __init__(
        self, config: Config, device: torch.device, classifiers: dict[str, Classifier]
    ) -> None:
        self.config, self.classifiers = config, classifiers
        self.segmenters = {
            name: segmenters.load(folder, config.segmenter_class, device)
            for name, folder in segmenter_names(config).items()
        }
        self.features = {name: features.load(name, device) for name in config.features}

    def score_block(self, block: Block, part: str, folder: Path) -> Scored:
        """Return the rows of a block, and the paths below `folder` and contents of its files."""
        images = [read_image(sample.image) for sample in block.samples]
        rows = [_begin(sample, image) for sample, image in zip(block.samples, images, strict=True)]
        contents: list[tuple[Path, bytes]] = []
        if part != "reference" and self.segmenters:
            contents += self._score_labels(block, images, rows, part, folder)
        if part == "data":
            self._name_attributes(images, rows)
        if part != "source" and self.features:
            found = {name: extract(images) for name, extract in self.features.items()}
            contents.append(score_rows.features_content(folder, part, block.samples, found))
        return Scored(rows, contents)

    def _score_labels(
        self, block: Block, images: list[np.ndarray], rows: list[Row], part: str, folder: Path
    ) -> list[tuple[Path, bytes]]:
        """Add the label fidelity under each segmenter to the rows; return the files of costs."""
        truths = [_read_label(s, i) for s, i in zip(block.samples, images, strict=True)]
        contents = []
        for name, segmenter in self.segmenters.items():
            costs = segmenters.costs_by_size(segmenter, images)
            for row, image_costs, label in zip(rows, costs, truths, strict=True):
                counts = fidelity.measure(
                    image_costs,
                    label,
                    band_share=self.config.band_share,
                    small_share=self.config.small_share,
                )
                row.setdefault("fidelity", {})[name] = counts.to_row()
            if self.config.costs and part == "data":
                contents += self._costs_files(block, rows, name, costs, folder)
        return contents

    def _costs_files(
        self, block: Block, rows: list[Row], segmenter: str, costs: list[np.ndarray], folder: Path
    ) -> list[tuple[Path, bytes]]:
        """Name the files of the costs in the rows; return paths and contents of the files."""
        contents = []
        for number, (row, image_costs) in enumerate(zip(rows, costs, strict=True)):
            path = score_rows.costs_file(segmenter, block.samples[number], block.first + number)
            row.setdefault("costs", {})[segmenter] = path
            content = segmenters.encode_costs(image_costs, self.config.costs_stride)
            contents.append((folder / path, content))
        return contents

    def _name_attributes(self, images: list[np.ndarray], rows: list[Row]) -> None:
        """Add to the rows which value of each attribute the classifiers see."""
        for attribute, classifier in self.classifiers.items():
            batch = images_to_tensor([looks.shrink(image) for image in images])
            shares = looks.probabilities(classifier.model, batch)
            for row, share in zip(rows, shares, strict=True):
                best = int(share.argmax())
                row.setdefault("attributes", {})[attribute] = {
                    "seen": classifier.names[best],
                    "probability": round(float(share[best]), 4),
                }


def _begin(sample: Sample, image: np.ndarray) -> Row:
    row = {"id": sample.id, "state": state_of(sample)}
    row["condition"] = condition_of(sample)
    return row | pixels.statistics(image) | {"hash": pixels.difference_hash(image)}


def condition_of(sample: Sample) -> str:
    """Return the condition that a row names, `none` without one."""
    return sample.condition or "none"


def _read_label(sample: Sample, image: np.ndarray) -> np.ndarray:
    assert sample.label is not None
    label = labels.read_label(sample.label)
    require_same_size(image.shape[1::-1], label.shape[::-1], sample.label)
    return label


def blocks_of(samples: Sequence[Sample], size: int) -> list[Block]:
    """Cut samples into blocks of neighbours, the same for any number of processes."""
    return [Block(i, samples[i : i + size]) for i in range(0, len(samples), size)]


def score_part(
    judges: Judges | None,
    part: str,
    samples: Sequence[Sample],
    folder: Path,
    share: tuple[int, int],
    batch_size: int,
) -> None:
    """Score what is missing of a part. `share`: index and number of the processes.

    A block of which a row is missing goes through the networks as a whole, so that a result does
    not depend on where a run was stopped. Without `judges` nothing may be missing.
    """
    index, count = share
    blocks, done = missing_blocks(part, samples, folder, batch_size)
    appender = score_rows.Appender(folder, part, index)
    todo = [block for block in blocks if block.first // batch_size % count == index]
    for block in tqdm(todo, desc=part, unit="block", disable=index > 0, leave=False):
        assert judges is not None
        write(judges.score_block(block, part, folder), done, appender)


def write(scored: Scored, done: set[str], appender: score_rows.Appender) -> None:
    """Write the files of a block, then the rows of the samples that have none in `done`."""
    files.write_all(scored.contents)
    appender.append([row for row in scored.rows if row["id"] not in done])


def missing_blocks(
    part: str, samples: Sequence[Sample], folder: Path, batch_size: int
) -> tuple[list[Block], set[str]]:
    """Return the blocks that lack a row, and the ids that have one."""
    done = set(score_rows.current_rows(folder, part, samples))
    blocks = blocks_of(samples, batch_size)
    return [b for b in blocks if not {s.id for s in b.samples} <= done], done
