"""Show features of a diffusion backbone: principal components of taps, attention of classes.

    python segtrain/visualise.py --base pocket --images DIR --limit 6 --output features

Each tap becomes one PNG with a row per image: the image, then for each noise level the first
three principal components over all images as red, green and blue; for a tap that ends in
`:maps`, the attention of the named classes, brightest where it is highest.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np

from pipeline import files, images, models
from pipeline.config import parse
from pipeline.dataset import check_images, find_images
from pipeline.errors import UserError, guard
from pipeline.images import read_image
from pipeline.labels import CLASS_NAMES
from pipeline.latents import images_to_tensor
from pipeline.output_files import open_output_file
from pipeline.setting_checks import require_positive
from segtrain.diffusion.options import Categories, Text


@dataclass(frozen=True)
class Config:
    """Settings of one visualisation."""

    base: str = "pocket"
    """Base model: pocket, a diffusers folder, or owner/name@<40-digit commit>."""
    unet: str = ""
    """Folder of a U-Net that replaces that of the base model."""
    images: Path = Path("runs/mine/source")
    """Dataset folder, or any folder with PNG or JPEG files."""
    output: Path = Path("features")
    """Folder to write to."""
    taps: tuple[str, ...] = (
        "up_blocks.0",
        "up_blocks.1",
        "up_blocks.2",
        "up_blocks.1.attentions.0.transformer_blocks.0.attn2:maps",
    )  # fmt: skip
    """Modules of the U-Net; see segtrain/diffusion/taps.py."""
    timesteps: tuple[int, ...] = (1,)
    """Timesteps at which features are computed; 1 alone takes the clean latent."""
    classes: tuple[str, ...] = ("road", "building", "vegetation", "sky", "car", "person")
    """Classes whose attention is shown."""
    categories: Categories = "words"
    """How classes become tokens: eos or words; none without a tap of `:maps`."""
    limit: int = 6
    """Use only the first N images."""


def principal_components(features: list[np.ndarray]) -> list[np.ndarray]:
    """Return hxwx3 uint8 of each Cxhxw feature: three components, 1st to 99th percentile."""
    pixels = np.concatenate([f.reshape(len(f), -1).T for f in features])
    centred = pixels - pixels.mean(0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    values = centred @ axes[:, ::-1][:, :3]
    low, high = np.percentile(values, (1, 99), axis=0)
    scaled = ((values - low) / np.maximum(high - low, 1e-9) * 255).clip(0, 255).astype(np.uint8)
    if scaled.shape[1] < 3:
        scaled = np.repeat(scaled[:, :1], 3, axis=1)
    sizes = np.cumsum([f[0].size for f in features])[:-1]
    return [
        part.reshape(*f.shape[1:], 3)
        for part, f in zip(np.split(scaled, sizes), features, strict=True)
    ]


def heat(attention: np.ndarray) -> np.ndarray:
    """Return hxwx3 uint8 of a map hxw, from black at its least to yellow at its most."""
    import cv2

    span = max(float(np.ptp(attention)), 1e-9)
    scaled = ((attention - attention.min()) / span * 255).astype(np.uint8)
    return cv2.applyColorMap(scaled, cv2.COLORMAP_INFERNO)[..., ::-1]


def sheets_of(config: Config) -> list[Path]:
    """Return the file of each tap's sheet."""
    return [config.output / f"{name.replace(':', '-')}.png" for name in config.taps]


def check(config: Config) -> list[Path]:
    """Find bad input before torch or weights load. Returns the images."""
    require_positive(config, "limit")
    models.find_base(config.base)
    if wrong := [name for name in config.classes if name not in CLASS_NAMES]:
        raise UserError(f"--classes {', '.join(wrong)}: expected some of {', '.join(CLASS_NAMES)}")
    Text(config.categories)  # raises for an unknown kind
    if config.categories == "none" and any(tap.endswith(":maps") for tap in config.taps):
        raise UserError("--categories none: taps of :maps need eos or words")
    if not config.taps:
        raise UserError("--taps: name at least one; see segtrain/diffusion/taps.py")
    if not config.timesteps or min(config.timesteps) < 0 or max(config.timesteps) > 999:
        raise UserError(f"--timesteps {config.timesteps}: must lie within 0..999")
    for target in sheets_of(config):
        open_output_file(target, lambda _: True, "image")
    paths = find_images(config.images)[: config.limit]
    check_images(paths)
    return paths


def extract(config: Config, images: list[np.ndarray]) -> dict[tuple[int, int], list[np.ndarray]]:
    """Return for each level and tap the CxhxW features of every image."""
    import torch

    from pipeline.prompt_encoder import PromptEncoder
    from segtrain.diffusion.extractor import load_extractor
    from segtrain.diffusion.prompts import TextContext
    from segtrain.diffusion.trajectories import Clean, Noised

    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    trajectory: Any = Clean(1) if config.timesteps == (1,) else Noised(config.timesteps)
    extractor = load_extractor(
        config.base, unet=config.unet, taps=config.taps, trajectory=trajectory
    ).to(device)
    encoder = PromptEncoder(models.find_base(config.base))
    text = TextContext(encoder, Text(categories=config.categories)).to(device)
    found: dict[tuple[int, int], list[np.ndarray]] = {}
    for image in images:
        pixels = images_to_tensor([image]).to(device)
        for level, tap, feature in extractor.features(pixels, text()):
            if config.taps[tap].endswith(":maps"):
                feature = text.class_maps(feature, len(CLASS_NAMES))
            found.setdefault((level, tap), []).append(feature[0].float().cpu().numpy())
    return found


def sheet(config: Config, tap: int, inputs: list[np.ndarray], found: Any) -> np.ndarray:
    """Return the sheet of a tap: a row per image, the image first."""
    import cv2

    columns: list[list[np.ndarray]] = [inputs]
    for level in range(len(config.timesteps)):
        features = found[level, tap]
        if config.taps[tap].endswith(":maps"):
            class_ids = [CLASS_NAMES.index(name) for name in config.classes]
            columns += [[heat(f[class_id]) for f in features] for class_id in class_ids]
        else:
            columns.append(principal_components(features))
    height, width = inputs[0].shape[:2]
    resized = [
        [cv2.resize(c, (width, height), interpolation=cv2.INTER_NEAREST) for c in column]
        for column in columns
    ]
    return np.concatenate([np.concatenate(column) for column in resized], axis=1)


def main() -> int | None:
    """Run the command line."""
    config, call = parse(Config, __doc__)
    paths = check(config)
    if call.dry_run:
        print(f"would show {len(config.taps)} taps of {len(paths)} images")
        return 0
    inputs = [read_image(path) for path in paths]
    found = extract(config, inputs)
    for tap, target in enumerate(sheets_of(config)):
        files.write_bytes(target, images.encode_png(sheet(config, tap, inputs, found)))
        print(target)
    return 0


if __name__ == "__main__":
    guard(main)
