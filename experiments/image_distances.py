"""How far are generated images from rendered ones, and are they copies?

    python experiments/image_distances.py --reference DIR --images DIR --training DIR --output OUT

Both sets go through EfficientNet-Lite0 (ImageNet, the extra `imagenet`). Reported: the Frechet
distance (Heusel et al., NeurIPS 2017), the unbiased kernel distance (Binkowski et al., ICLR 2018,
section 3) with its deviation over subsets, precision and recall (Kynkaanniemi et al., NeurIPS
2019). `--training` names what the model learned from: a sheet puts beside each of eight images its
nearest training image. The features are not Inception's: compare the values with each other alone.
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
from pipeline import files
from pipeline.dataset import open_dataset, read_image
from pipeline.errors import UserError, guard

if TYPE_CHECKING:
    import torch

SIZE_PX = (128, 256)
NEIGHBOURS = 3  # k of precision and recall; the paper's value
SUBSETS, SUBSET_SIZE = 50, 100


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


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return |mean difference|^2 + trace(A + B - 2 (A B)^(1/2)) of two sets of features NxD."""
    from scipy import linalg

    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(cov_a @ cov_b)
    shift = np.square(a.mean(0) - b.mean(0)).sum()
    return float(shift + np.trace(cov_a + cov_b - 2 * np.real(root)))


def kernel_distance(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Return mean and deviation over subsets of the unbiased MMD^2, kernel (x.y / D + 1)^3."""
    rng = np.random.default_rng(0)
    size = min(SUBSET_SIZE, len(a), len(b))
    values = []
    for _ in range(SUBSETS):
        x, y = (part[rng.choice(len(part), size, replace=False)] for part in (a, b))
        xx, yy, xy = (_kernel(*pair) for pair in ((x, x), (y, y), (x, y)))
        within = sum((k.sum() - np.trace(k)) / (size * (size - 1)) for k in (xx, yy))
        values.append(within - 2 * xy.mean())
    return float(np.mean(values)), float(np.std(values))


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1) ** 3


def covered(points: np.ndarray, support: np.ndarray) -> float:
    """Return the share of `points` within a ball of `support`, as wide as its k-th neighbour."""
    radii = np.sort(_distances(support, support), axis=1)[:, NEIGHBOURS]
    return float((_distances(points, support) <= radii).any(axis=1).mean())


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    squares = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0))


def compare(reference: np.ndarray, images: np.ndarray) -> dict[str, Any]:
    """Return all distances of features `images` from features `reference`."""
    kernel, deviation = kernel_distance(reference, images)
    return {
        "n": [len(reference), len(images)],
        "frechet": round(frechet_distance(reference, images), 4),
        "kernel": round(kernel, 6),
        "kernel_deviation": round(deviation, 6),
        "precision": round(covered(images, reference), 3),
        "recall": round(covered(reference, images), 3),
    }


def neighbour_sheet(
    images: list[np.ndarray], features: np.ndarray, others: list[np.ndarray], theirs: np.ndarray
) -> np.ndarray:
    """Return eight rows of an image and the training image that is nearest to it."""
    chosen = np.linspace(0, len(images) - 1, min(8, len(images))).astype(int)
    nearest = _distances(features[chosen], theirs).argmin(1)
    pairs = zip(chosen, nearest, strict=True)
    return np.concatenate([np.concatenate([images[i], others[j]], axis=1) for i, j in pairs])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--reference", required=True)
    parser.add_argument("--images", required=True, nargs="+")
    parser.add_argument("--training", default="")
    parser.add_argument("--most", type=int, default=None, help="images read of each folder")
    parser.add_argument("--output", required=True, type=Path)
    arguments = parser.parse_args()
    from pipeline import efficientnet

    network = efficientnet.load_imagenet()
    reference = features_of(network, load_images(arguments.reference, arguments.most))
    if len(reference) <= NEIGHBOURS:
        raise UserError(f"{arguments.reference}: too few images; {NEIGHBOURS + 1} are the least")
    training = load_images(arguments.training, arguments.most) if arguments.training else []
    known = features_of(network, training) if training else None
    result: dict[str, Any] = {"measured_on": describe("torch"), "sets": {}}
    for folder in arguments.images:
        images = load_images(folder, arguments.most)
        features = features_of(network, images)
        result["sets"][folder] = compare(reference, features)
        print(f"{folder}: {result['sets'][folder]}", flush=True)
        if known is not None:
            sheet = neighbour_sheet(images, features, training, known)
            path = arguments.output / f"neighbours_{Path(folder).name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(sheet).save(path)
    files.write_json(arguments.output / "distances.json", result)


if __name__ == "__main__":
    guard(main)
