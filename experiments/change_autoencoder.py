"""Fit U-Net and ControlNet of a base model to another autoencoder, as a start of further training.

    python experiments/change_autoencoder.py --base pocket --vae DIR/vae --data DIR --output DIR
    python experiments/change_autoencoder.py --base DIR/base --controlnet DIR/controlnet \\
        --vae DIR/vae --data DIR --output DIR

The latents of two autoencoders that reduce images alike are close to linear functions of each
other, pixel by pixel. The map between them is a least-squares fit on images of --data. It is put
before the first and behind the last convolution of the U-Net, and before the first one of the
ControlNet. All other weights stay. Writes OUTPUT/base and OUTPUT/controlnet, weights in float16.
They are of no use before `finetune/prior.py --init` and `finetune/controlnet.py --init` train them.
"""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from finetune.diffusion import encode_moments
from pipeline.dataset import open_dataset
from pipeline.errors import UserError, guard
from pipeline.images import read_image
from pipeline.models import check_fit, find_base, find_folder, load_network
from pipeline.output_folders import require_writable
from pipeline.size_grid import vae_scale_factor


@torch.no_grad()
def latent_pixels(vae: Any, images: list[Any]) -> torch.Tensor:
    """Return the scaled latents of HxWx3 images as rows of channels, float64."""
    means = [encode_moments(vae, [image])[0, 0].double() for image in images]
    return torch.cat([mean.flatten(1).T for mean in means])


def fit_map(new: torch.Tensor, old: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return the matrix A, old channels x new channels, where A `new` fits `old`, and R^2.

    R^2 is the share of the variance of `old` that the map explains, an offset included. Rows of A
    have length 1, so that white noise stays white noise of deviation 1 in each channel.
    """
    rows = torch.cat([new, torch.ones(len(new), 1, dtype=new.dtype)], dim=1)
    solution = torch.linalg.lstsq(rows, old).solution
    left = (rows @ solution - old).square().mean(0).sum()
    explained = 1 - float(left / old.var(0, correction=0).sum())
    matrix = solution[:-1].T
    return matrix / matrix.norm(dim=1, keepdim=True), explained


def change_channels(network: Any, matrix: torch.Tensor) -> Any:
    """Return `network`, a U-Net or a ControlNet, for latents that `matrix` maps to those of today.

    The first convolution takes `matrix` times the latents. The last one of a U-Net is followed by
    the pseudo-inverse of `matrix`.
    """
    matrix = matrix.float()
    channels = {"in_channels": matrix.shape[1]}
    state = network.state_dict()
    state["conv_in.weight"] = torch.einsum("fchw,cn->fnhw", state["conv_in.weight"], matrix)
    if "conv_out.weight" in state:
        channels["out_channels"] = matrix.shape[1]
        inverse = torch.linalg.pinv(matrix)
        state["conv_out.weight"] = torch.einsum("nc,cfhw->nfhw", inverse, state["conv_out.weight"])
        state["conv_out.bias"] = inverse @ state["conv_out.bias"]
    settings = {k: v for k, v in network.config.items() if k[0] != "_"}
    changed = type(network).from_config(settings | channels)
    changed.load_state_dict(state)
    return changed


def scale_residuals(controlnet: Any, factor: float) -> None:
    """Multiply what a ControlNet adds to the U-Net by `factor`."""
    for layer in (*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block):
        layer.weight.data *= factor
        layer.bias.data *= factor


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--base", required=True, help="base model: pocket, or a folder")
    parser.add_argument("--vae", required=True, help="folder of the other autoencoder")
    parser.add_argument(
        "--data", required=True, help="dataset folder of images; labels are not read"
    )
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    parser.add_argument("--controlnet", help="ControlNet of the base: pocket, or a folder")
    parser.add_argument("--images", type=int, default=160, help="images that the map is fitted on")
    parser.add_argument(
        "--residual-factor",
        type=float,
        default=0.5,
        help="factor on the residuals of the ControlNet, which no longer fit the U-Net exactly",
    )
    options = parser.parse_args()
    base, vae_folder = Path(find_base(options.base)), find_folder(options.vae, "vae")
    networks = {"base/unet": load_network("unet", str(base))}
    if options.controlnet:
        folder = find_folder(options.controlnet, "controlnet")
        check_fit(f"--controlnet {options.controlnet}", "controlnet", folder, str(base))
        networks["controlnet"] = load_network("controlnet", None, folder)
        scale_residuals(networks["controlnet"], options.residual_factor)
    samples = open_dataset(options.data, labelled=False)[: options.images]
    old, new = load_network("vae", str(base)), load_network("vae", None, vae_folder)
    if vae_scale_factor(old) != vae_scale_factor(new):
        raise UserError(
            f"--vae {options.vae}: reduces images {vae_scale_factor(new)} times, that of --base "
            f"{vae_scale_factor(old)} times; name one that reduces them alike"
        )
    for name in ("base", "controlnet"):
        if (options.output / name).exists():
            raise UserError(
                f"--output {options.output}: holds {name} already; choose another folder"
            )
    require_writable(options.output)

    images = [read_image(sample.image) for sample in samples]
    matrix, explained = fit_map(latent_pixels(new, images), latent_pixels(old, images))
    print(f"the map explains {explained:.1%} of the variance of the latents of --base")
    shutil.copytree(base, options.output / "base", ignore=shutil.ignore_patterns("unet", "vae"))
    shutil.copytree(vae_folder, options.output / "base" / "vae")
    for name, network in networks.items():
        change_channels(network, matrix).half().save_pretrained(options.output / name)


if __name__ == "__main__":
    guard(main)
