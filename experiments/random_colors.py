"""Recolour the source images of a generated set at random, class by class.

A baseline for colour transfer from generated images: equal gains from random colours would mean
that the diffusion model contributes nothing. Each class of each image receives a random mean
colour and a random share of its contrast (domain randomization, Tobin et al., 2017).

    python experiments/random_colors.py --generated DIR --label-maps DIR --output DIR

`--label-maps` is the dataset folder that the set was generated from.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.dataset import open_dataset, read_pair
from pipeline.dataset_writer import DatasetWriter
from pipeline.errors import UserError, guard
from pipeline.lab_colors import from_lab, to_lab
from pipeline.origins import kept_by_copies
from pipeline.rows import sample_id
from pipeline.sample_views import source_image
from pipeline.seeding import numpy_generator

LIGHTNESS, CHROMA_STD, CONTRAST = (10.0, 90.0), 15.0, (0.2, 1.0)


def recolor(rng: np.random.Generator, image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Return HxWx3 uint8 in random colours, sampled for each class of `label`."""
    lab = to_lab(image)
    for class_id in np.unique(label):
        shown = label == class_id
        mean = [rng.uniform(*LIGHTNESS), *rng.normal(0, CHROMA_STD, 2)]
        lab[shown] = mean + rng.uniform(*CONTRAST) * (lab[shown] - lab[shown].mean(0))
    return from_lab(lab)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    for name, text in {
        "generated": "generated dataset folder",
        "label-maps": "dataset folder of its label maps and source images",
        "output": "dataset folder to write",
    }.items():
        parser.add_argument(f"--{name}", required=True, type=Path, help=text)
    arguments = parser.parse_args()
    names = {"recoloring_of": str(arguments.generated), "label_maps": str(arguments.label_maps)}
    kept = kept_by_copies(arguments.label_maps, whole=False)
    writer = DatasetWriter(arguments.output, config=names, provenance=kept)
    done = writer.done_ids()
    for sample in tqdm(open_dataset(arguments.generated, labelled=True)):
        index = int(sample.id)
        if sample_id(index) in done:
            continue
        image, (_, label) = source_image(sample, arguments.label_maps), read_pair(sample)
        if image is None:
            raise UserError(
                f"--label-maps {arguments.label_maps}: has no {sample.row['source_label']}"
            )
        recolored = recolor(numpy_generator(0, "random colors", index), image, label)
        writer.write(index, recolored, label, {"condition": sample.row["condition"]})


if __name__ == "__main__":
    guard(main)
