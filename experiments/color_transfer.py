"""Give the source images the colours of random images of an unlabelled collection.

A baseline that needs no diffusion model, keeps labels exact and takes minutes. Three methods:

    reinhard       mean and standard deviation of each channel (Reinhard et al., Color Transfer
                   between Images, 2001; here in CIE L*a*b*)
    reinhard_rows  the same for each row (pipeline/row_colors.py)
    fda            the lowest frequencies of the amplitude spectrum (Yang and Soatto, FDA: Fourier
                   Domain Adaptation for Semantic Segmentation, CVPR 2020)

    python experiments/color_transfer.py --source DIR --collection DIR --output DIR --n 320
    python experiments/color_transfer.py --source DIR --collection DIR --output DIR --crops-of DIR

`--source` is a labelled dataset folder, whose first `--n` samples are written. `--crops-of` names
a set that was generated from that source; its label crops are then written, for a fair comparison.
Image i depends on the inputs, the method and the seed only; the same command continues.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.dataset import open_dataset, read_pair
from pipeline.dataset_writer import DatasetWriter
from pipeline.errors import UserError, guard
from pipeline.images import read_image
from pipeline.lab_colors import from_lab, to_lab
from pipeline.origins import kept_by_copies
from pipeline.row_colors import transfer_row_colors
from pipeline.rows import sample_id
from pipeline.sample_views import source_image
from pipeline.seeding import numpy_generator
from pipeline.setting_checks import require_seed

MIN_STD = 1e-3  # smallest deviation of a channel in L*a*b*; flatter channels are not scaled


def reinhard(image: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return `image` with the mean and deviation of `target`, channel by channel in L*a*b*.

    Both are HxWx3 uint8 sRGB of any size; so is the result, at the size of `image`.
    """
    source, goal = to_lab(image), to_lab(target)
    scale = goal.std((0, 1)) / np.maximum(source.std((0, 1)), MIN_STD)
    lab = (source - source.mean((0, 1))) * scale + goal.mean((0, 1))
    return from_lab(lab)


def fda(image: np.ndarray, target: np.ndarray, beta: float) -> np.ndarray:
    """Return `image` with the low-frequency amplitudes of `target`; its phases stay.

    `beta` is half the side of the exchanged square as a share of the shorter side, as in the
    paper, which uses 0.01, 0.05 and 0.09. Both images are HxWx3 uint8; `target` is resized.
    """
    height, width = image.shape[:2]
    target = cv2.resize(target, (width, height), interpolation=cv2.INTER_AREA)
    half = int(min(height, width) * beta)
    rows = np.abs(np.fft.fftfreq(height, 1 / height)) <= half
    columns = np.abs(np.fft.fftfreq(width, 1 / width)) <= half
    low = (rows[:, None] & columns[None])[..., None]
    spectrum, goal = (np.fft.fft2(i.astype(np.float64), axes=(0, 1)) for i in (image, target))
    amplitude = np.where(low, np.abs(goal), np.abs(spectrum))
    mixed = np.fft.ifft2(amplitude * np.exp(1j * np.angle(spectrum)), axes=(0, 1)).real
    return mixed.clip(0, 255).round().astype(np.uint8)


def pairs(
    source: Path, n: int | None, crops_of: Path | None
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield (index, image, label) of the pairs to recolour."""
    if crops_of is None:
        for index, sample in enumerate(open_dataset(source, labelled=True)[:n]):
            yield index, *read_pair(sample)
        return
    for sample in open_dataset(crops_of, labelled=True)[:n]:
        image, (_, label) = source_image(sample, source), read_pair(sample)
        if image is None:
            raise UserError(
                f"--source {source}: has no {sample.row.get('source_label')}; give the "
                f"folder that {crops_of} was generated from"
            )
        yield int(sample.id), image, label


def read_options() -> argparse.Namespace:
    """Return the options of the call; raises `UserError` for a value out of range."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    for name, text in {
        "source": "labelled dataset folder to recolour",
        "collection": "unlabelled dataset folder of the target colours",
        "output": "dataset folder to write",
    }.items():
        parser.add_argument(f"--{name}", required=True, type=Path, help=text)
    parser.add_argument("--crops-of", type=Path, help="generated set whose label crops are used")
    parser.add_argument("--n", type=int, help="number of images; default: all")
    parser.add_argument(
        "--method",
        choices=("reinhard", "reinhard_rows", "fda"),
        default="reinhard",
        help="colour transfer, see above",
    )
    parser.add_argument(
        "--fda-beta",
        type=float,
        default=0.01,
        help="half width of the replaced frequencies, as a share of the image (FDA's beta)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the choice of collection images"
    )
    options = parser.parse_args()
    if options.n is not None and options.n < 1:
        raise UserError(f"--n {options.n}: must be 1 or more")
    if not 0 < options.fda_beta <= 0.5:
        raise UserError(f"--fda-beta {options.fda_beta}: must be above 0 and at most 0.5")
    require_seed(options.seed)
    return options


def main() -> None:
    options = read_options()
    collection = open_dataset(options.collection, labelled=False)
    settings = {k: None if v is None else str(v) for k, v in vars(options).items()}
    writer = DatasetWriter(
        options.output,
        config={k: settings[k] for k in sorted(settings) if k not in ("output", "n")},
        provenance=kept_by_copies(options.source, whole=options.crops_of is None),
    )
    done = writer.done_ids()
    for index, image, label in tqdm(pairs(options.source, options.n, options.crops_of)):
        if sample_id(index) in done:
            continue
        rng = numpy_generator(options.seed, "color transfer", index)
        other = collection[int(rng.integers(len(collection)))]
        target = read_image(other.image)
        if options.method == "reinhard":
            result = reinhard(image, target)
        elif options.method == "reinhard_rows":
            result = transfer_row_colors(image, target)
        else:
            result = fda(image, target, options.fda_beta)
        row = {"condition": str(other.row.get("condition", "")), "colors_of": other.id}
        writer.write(index, result, label, row)


if __name__ == "__main__":
    guard(main)
