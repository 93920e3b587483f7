"""Measure the distance between generated and rendered images, and look for copies.

    python experiments/image_distances.py --reference DIR --images DIR --training DIR --output OUT

Features are those of EfficientNet-Lite0 (ImageNet, extra `imagenet`). Reports the Frechet distance
(Heusel et al., NeurIPS 2017), the unbiased kernel distance (Binkowski et al., ICLR 2018, section
3) with its deviation over subsets, and precision and recall (Kynkaanniemi et al., NeurIPS 2019).
`--training` is the training set of the generator: a sheet shows eight images, each beside its
nearest training image. The features are not Inception's, so the values compare with each other
only.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.machine import describe
from generation.quality import distances
from pipeline import files
from pipeline.dataset import open_dataset
from pipeline.errors import UserError, guard
from pipeline.images import read_image

if TYPE_CHECKING:
    import torch

SIZE_PX = (128, 256)


def load_images(folder: str, most: int | None) -> list[np.ndarray]:
    """Return the images of a dataset folder, HxWx3 uint8 of SIZE_PX."""
    samples = open_dataset(folder, labelled=False)[:most]
    size = SIZE_PX[::-1]
    return [cv2.resize(read_image(s.image), size, interpolation=cv2.INTER_AREA) for s in samples]


def features_of(network: "torch.nn.Module", images: list[np.ndarray]) -> np.ndarray:
    """Return the mean features of each image after the last stage, Nx320 float64."""
    import torch

    from pipeline import efficientnet
    from pipeline.latents import images_to_tensor

    parts = []
    with torch.no_grad():
        for start in tqdm(range(0, len(images), 16), desc="features"):
            batch = images_to_tensor(images[start : start + 16])
            parts.append(network(efficientnet.normalise(batch))[-1].mean((2, 3)))
    return torch.cat(parts).double().numpy()


def neighbour_sheet(
    images: list[np.ndarray], features: np.ndarray, others: list[np.ndarray], theirs: np.ndarray
) -> np.ndarray:
    """Return eight rows of an image and the training image that is nearest to it."""
    chosen = np.linspace(0, len(images) - 1, min(8, len(images))).astype(int)
    nearest = distances.pairwise(features[chosen], theirs).argmin(1)
    pairs = zip(chosen, nearest, strict=True)
    return np.concatenate([np.concatenate([images[i], others[j]], axis=1) for i, j in pairs])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--reference", required=True, help="dataset folder of rendered images")
    parser.add_argument(
        "--images", required=True, nargs="+", help="dataset folders to compare with it"
    )
    parser.add_argument("--training", default="", help="training set of the generator")
    parser.add_argument(
        "--most", type=int, default=None, help="largest number of images per folder"
    )
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    arguments = parser.parse_args()
    from pipeline import efficientnet

    network = efficientnet.load_imagenet()
    reference = features_of(network, load_images(arguments.reference, arguments.most))
    if len(reference) < distances.LEAST:
        raise UserError(
            f"{arguments.reference}: has too few images; give at least {distances.LEAST}"
        )
    training = load_images(arguments.training, arguments.most) if arguments.training else []
    known = features_of(network, training) if training else None
    result: dict[str, Any] = {"measured_on": describe("torch"), "sets": {}}
    for folder in arguments.images:
        images = load_images(folder, arguments.most)
        features = features_of(network, images)
        result["sets"][folder] = distances.compare(reference, features)
        print(f"{folder}: {result['sets'][folder]}", flush=True)
        if known is not None:
            sheet = neighbour_sheet(images, features, training, known)
            path = arguments.output / f"neighbours_{Path(folder).name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(sheet).save(path)
    files.write_json(arguments.output / "distances.json", result)


if __name__ == "__main__":
    guard(main)
