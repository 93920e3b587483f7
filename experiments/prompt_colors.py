"""Measure whether a U-Net predicts the colours that a prompt names.

At high noise only the prompt and the coarsest part of a latent are left, and what the U-Net
predicts there sets the colours of the whole image. Images of several conditions are encoded, noised
to some timesteps and denoised with their own captions. For each condition, the mean predicted and
the mean true latent are computed, and the mean over all conditions is subtracted from both. The
program prints the slope of the regression of the predicted means on the true ones.

    python experiments/prompt_colors.py --data DIR --base DIR [DIR ...]
    python experiments/prompt_colors.py --data DIR --base DIR --unet runs/mine/unet/unet

A slope of 1 is right. With one near 0, the images of all prompts have the same greyish colours. The
column "text" tells how far the text encoder of the base separates the conditions: the variance of
its output between them, over its mean square. `--data` is a captioned dataset folder whose rows
name conditions.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from finetune.diffusion import FrozenBase, encode_moments, predict
from pipeline import models
from pipeline.dataset import Sample, open_dataset
from pipeline.errors import UserError, guard
from pipeline.hub import find_local
from pipeline.images import read_image
from pipeline.markdown import table
from pipeline.resizing import resize_area
from pipeline.setting_checks import require_between, require_positive
from pipeline.size_grid import read_size_grid, require_multiple

TIMESTEPS = (999, 899, 799, 699, 499)


def by_condition(folder: Path, number: int) -> dict[str, list[Sample]]:
    """Return the first `number` samples of each condition; raises `UserError` if there is one."""
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in open_dataset(folder, labelled=False):
        if sample.condition and len(groups[sample.condition]) < number:
            if not sample.caption:
                raise UserError(f"--data {folder}: row {sample.id} has no `prompt`; add captions")
            groups[sample.condition].append(sample)
    if len(groups) < 2:
        raise UserError(f"--data {folder}: its rows name {len(groups)} conditions; two are needed")
    return groups


def slope(predicted: torch.Tensor, actual: torch.Tensor) -> float:
    """Return the slope of a regression of means NxC over N conditions; both are centred first.

    Raises `UserError` if the images of all conditions have the same mean.
    """
    predicted, actual = predicted - predicted.mean(0), actual - actual.mean(0)
    if float(actual.abs().max()) == 0:
        raise UserError("--data: the images of all conditions have the same colours; take others")
    return float((predicted * actual).sum() / (actual**2).sum())


@torch.no_grad()
def text_separation(frozen: FrozenBase, groups: dict[str, list[Sample]]) -> float:
    """Return the variance of the text encoder's output between conditions, over its mean square."""
    captions = {name: [sample.caption for sample in found] for name, found in groups.items()}
    states = {name: frozen.text.encode(texts).states for name, texts in captions.items()}
    means = torch.stack([of_one.mean(0) for of_one in states.values()])
    between = (means - means.mean(0)).square().mean()
    return float(between / torch.cat(list(states.values())).square().mean())


@torch.no_grad()
def slopes(
    frozen: FrozenBase,
    unet: Any,
    groups: dict[str, list[Sample]],
    size_px: tuple[int, int],
    times: list[int],
) -> list[float]:
    """Return the slope at each timestep, for images resized to (height, width)."""
    actual: list[torch.Tensor] = []
    predicted: dict[int, list[torch.Tensor]] = {time: [] for time in times}
    for samples in groups.values():
        images = [resize_area(read_image(sample.image), size_px) for sample in samples]
        latents = encode_moments(frozen.vae, images)[:, 0].float()
        actual.append(latents.mean((0, 2, 3)))
        text = frozen.text_arguments([sample.caption for sample in samples], latents)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
        for time in times:
            steps = torch.full((len(latents),), time)
            noisy = frozen.scheduler.add_noise(latents, noise, steps)
            output = predict(unet, noisy, steps, text)
            predicted[time].append(clean_latents(frozen, noisy, output, time).mean((0, 2, 3)))
    return [slope(torch.stack(means), torch.stack(actual)) for means in predicted.values()]


def clean_latents(
    frozen: FrozenBase, noisy: torch.Tensor, output: torch.Tensor, time: int
) -> torch.Tensor:
    """Return the clean latents that a prediction of the scheduler's type means."""
    alpha = frozen.scheduler.alphas_cumprod[time]
    kind = frozen.scheduler.config.prediction_type
    if kind == "v_prediction":
        return alpha.sqrt() * noisy - (1 - alpha).sqrt() * output
    if kind == "epsilon":
        return (noisy - (1 - alpha).sqrt() * output) / alpha.sqrt()
    return output


def check_size(base: str, size_px: Sequence[int]) -> None:
    """Raise `UserError` unless the networks of a base take images of (height, width)."""
    if min(size_px) < 1:
        raise UserError(f"--size-px {size_px[0]} {size_px[1]}: must be above 0")
    if (home := find_local(base)) is not None:
        grid = read_size_grid(home / "vae", home / "unet")
        require_multiple("--size-px", size_px, grid.size_multiple, f"for --base {base}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="captioned dataset folder")
    parser.add_argument("--base", nargs="+", default=["pocket"], help="base models")
    parser.add_argument("--unet", help="folder of a U-Net in place of that of the one base")
    parser.add_argument("--n", type=int, default=12, help="images of each condition at most")
    parser.add_argument(
        "--size-px", type=int, nargs=2, default=(64, 128), help="height and width of the images"
    )
    parser.add_argument("--timesteps", type=int, nargs="+", default=TIMESTEPS, help="0 to 999")
    options = parser.parse_args()
    require_positive(options, "n")
    for time in options.timesteps:
        require_between(argparse.Namespace(timesteps=time), 0, 999, "timesteps")
    if options.unet and len(options.base) > 1:
        raise UserError("--unet: belongs to one base model; name one --base")
    times = list(dict.fromkeys(options.timesteps))
    groups = by_condition(options.data, options.n)
    rows = []
    for name in options.base:
        base = models.find_base(name)
        folder = models.find_folder(options.unet, "unet") if options.unet else None
        if folder is not None:
            models.check_fit(f"--unet {options.unet}", "unet", folder, base)
        unet = models.load_network("unet", base, folder).eval()
        check_size(base, options.size_px)
        frozen = FrozenBase(base, torch.device("cpu"))
        if max(times) >= (number := frozen.scheduler.config.num_train_timesteps):
            raise UserError(
                f"--timesteps {max(times)}: {name} has the timesteps 0 to {number - 1}; name those"
            )
        values = slopes(frozen, unet, groups, tuple(options.size_px), times)
        values = [text_separation(frozen, groups), *values]
        rows.append([options.unet or name, *(f"{value:.2f}" for value in values)])
    print(table(["U-Net", "text", *(f"t = {time}" for time in times)], rows))


if __name__ == "__main__":
    guard(main)
