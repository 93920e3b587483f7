"""Measure the reconstruction quality of the autoencoder.

Writes a dataset folder of reconstructions, and the PSNR per look. The score of an oracle segmenter
on both folders then shows whether small objects are preserved.

    python experiments/vae_reconstruction.py --data DIR --base pocket --output DIR
    python experiments/vae_reconstruction.py --data DIR --vae VAE_FOLDER --output DIR
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline import files, models
from pipeline.dataset import open_dataset, read_pair
from pipeline.dataset_writer import DatasetWriter
from pipeline.errors import guard
from pipeline.latents import (
    decode_latents,
    encode_latents,
    images_to_tensor,
    tensor_to_images,
)
from pipeline.origins import kept_by_copies
from pipeline.rows import sample_id


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio of two uint8 images in dB."""
    error = np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", required=True, help="dataset folder to reconstruct")
    parser.add_argument("--base", default="pocket", help="base model whose autoencoder is used")
    parser.add_argument(
        "--vae", default="", help="autoencoder folder to use instead of that of --base"
    )
    parser.add_argument("--output", required=True, type=Path, help="dataset folder to write")
    arguments = parser.parse_args()
    if arguments.vae:
        folder: str | Path = models.find_folder(arguments.vae, "vae")
        vae = models.load_network("vae", None, folder)
    else:
        folder = models.find_base(arguments.base)
        vae = models.load_component(str(folder), "vae")
    settings = {"reconstruction_of": arguments.data, "revision": models.revision(folder)}
    kept = kept_by_copies(Path(arguments.data))
    writer = DatasetWriter(arguments.output, config=settings, provenance=kept)
    done = writer.done_ids()
    for index, sample in enumerate(tqdm(open_dataset(arguments.data, labelled=True))):
        if sample_id(index) in done:
            continue
        image, label = read_pair(sample)
        with torch.no_grad():
            latents = encode_latents(vae, images_to_tensor([image]))
            output = tensor_to_images(decode_latents(vae, latents))[0]
        row = {k: sample.row.get(k) for k in ("look", "condition", "seed")}
        writer.write(index, output, label, {**row, "psnr": psnr(image, output)})
    by_look = defaultdict(list)
    for sample in open_dataset(arguments.output, labelled=True):
        by_look[sample.row["look"]].append(sample.row["psnr"])
    result = {look: round(float(np.mean(v)), 2) for look, v in sorted(by_look.items())}
    result["mean"] = round(float(np.mean([v for values in by_look.values() for v in values])), 2)
    files.write_json(arguments.output / "psnr.json", result)
    print(result)


if __name__ == "__main__":
    guard(main)
