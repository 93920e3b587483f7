"""Render the label maps of a generated set, each in the look that its prompt names.

The result is an upper bound for generated images: same labels, same looks, no diffusion model. The
set must have been generated from frames of Pocket City's source.

    python experiments/render_label_maps.py --generated DIR --output DIR
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
from pipeline.pocket.collection import LOOKS
from pipeline.pocket.render import render_pair
from pipeline.pocket.scene import make_scene
from pipeline.pocket.splits import look_of, scene_seed
from pipeline.rows import sample_id


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--generated", required=True, help="generated dataset folder")
    parser.add_argument("--output", required=True, type=Path, help="dataset folder to write")
    arguments = parser.parse_args()
    writer = DatasetWriter(arguments.output, config={"rendering_of": arguments.generated})
    done = writer.done_ids()
    camera = look_of("source", 0)[1].camera
    for sample in tqdm(open_dataset(arguments.generated, labelled=True)):
        index = int(sample.id)
        if sample_id(index) in done:
            continue
        seed = scene_seed("source", int(Path(sample.row["source_label"]).stem))
        look = LOOKS[sample.row["condition"]]
        _, wanted = read_pair(sample)
        image, label = render_pair(make_scene(seed, camera), look, *wanted.shape, seed)
        if not np.array_equal(label, wanted):
            raise UserError(f"{sample.label}: is not the whole frame of a source scene")
        row = {"condition": sample.row["condition"], "look": sample.row["condition"], "seed": seed}
        writer.write(index, image, label, row)


if __name__ == "__main__":
    guard(main)
