"""The text of --dry-run: plan, cost and prompts of a run, without torch."""

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from generation import tiles
from generation.plan import PlanItem
from generation.samples import SampleSpec
from generation.settings import Config
from generation.sizes import CanvasSizes
from generation.specs import SpecReader
from generation.tiles import RegionRules
from pipeline import models
from pipeline.errors import UserError
from pipeline.hub import find_local
from pipeline.labels import CLASS_NAMES
from pipeline.metadata import read_rows
from pipeline.prompt_encoder import is_cut, load_tokenizers
from pipeline.size_grid import STABLE_DIFFUSION, SizeGrid, read_size_grid

NUM_SAMPLED = 16  # label maps read for a forecast
NUM_EXAMPLES = 3
THREADS = 8
BYTES_PER_PIXEL = 2.2  # PNG image and label together


def disk_estimate(num_samples: int, crop_px: tuple[int, int]) -> int:
    """Return about how many bytes samples need."""
    return int(num_samples * crop_px[0] * crop_px[1] * BYTES_PER_PIXEL)


def disk_free(folder: Path) -> int:
    """Return the free bytes where `folder` is or will be."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def require_disk(folder: Path, num_missing: int, crop_px: tuple[int, int]) -> None:
    """Raise `UserError` if the missing samples will not fit."""
    need, free = disk_estimate(num_missing, crop_px), disk_free(folder)
    if need > free:
        raise UserError(
            f"{folder}: {num_missing} samples need about {need / 1e6:.1f} MB but "
            f"{free / 1e6:.1f} MB are free; free some space or choose another --output"
        )


def _counts(title: str, names: Sequence[str]) -> list[str]:
    found = Counter(names)
    lines = [f"{title}:"]
    for name, count in sorted(found.items(), key=lambda pair: (-pair[1], pair[0])):
        lines.append(f"  {name:<16} {count:>7}  {100 * count / len(names):5.1f} %")
    return lines


def summary(config: Config, plan: list[PlanItem], num_label_maps: int, num_missing: int) -> str:
    """Return the text of `--dry-run`."""
    part = f", in shard {config.shard}" if config.shard else ""
    disk = "" if config.output_address else f", {disk_free(config.output) / 1e6:.1f} MB free"
    classes = ["(any)" if i.rare_class is None else CLASS_NAMES[i.rare_class] for i in plan]
    lines = [
        f"samples: {len(plan)}, of which {num_missing} are missing in "
        f"{config.output_address or config.output}{part}",
        f"label maps: {num_label_maps} in {config.label_maps_folder}",
        f"image: {config.crop_px[1]}x{config.crop_px[0]} px, fusion {config.fusion}, "
        f"color transfer {config.color_transfer}",
        *_counts("conditions", [item.condition for item in plan]),
        *_counts("label map chosen for class", classes),
        f"disk: about {disk_estimate(num_missing, config.crop_px) / 1e6:.1f} MB needed{disk}",
    ]
    return "\n".join(lines)


def count_tiles(
    label: np.ndarray, sizes: CanvasSizes, rules: RegionRules, grid: SizeGrid
) -> tuple[int, int]:
    """Return how many tiles of a label crop will be evaluated, and how many its canvas has."""
    if not sizes.is_tiled:
        return 0, 0
    padded = sizes.padded(grid)

    def latent(size_px: tuple[int, int]) -> tuple[int, int]:
        return size_px[0] // grid.vae_scale_factor, size_px[1] // grid.vae_scale_factor

    canvas, tile, stride = map(latent, (padded.canvas_px, padded.tile_px, padded.stride_px))
    boxes = tiles.tile_boxes(canvas, tile, stride)
    missing = [(0, big - own) for big, own in zip(padded.crop_px, label.shape, strict=True)]
    mask = rules.held_mask(np.pad(label, missing, mode="edge"), canvas)
    return len(tiles.chosen_boxes(boxes, tile, mask, rules.selection)), len(boxes)


def read_some(missing: Sequence[PlanItem], specs: SpecReader) -> list[SampleSpec]:
    """Return up to NUM_SAMPLED of the missing samples, evenly spread."""
    chosen = [missing[i] for i in np.linspace(0, len(missing) - 1, NUM_SAMPLED).astype(int)]
    return [specs.read(item) for item in dict.fromkeys(chosen)]


def cut_prompts(prompts: Sequence[str], negative_prompt: str, base: str) -> str:
    """Return a line if the text window of the base model cuts prompts, else "".

    A base model that is not on this disk tells nothing yet.
    """
    home = find_local(models.find_base(base))
    if home is None:
        return ""
    tokenizers = load_tokenizers(home)
    window = min(tokenizer.model_max_length for tokenizer in tokenizers)
    num_cut = sum(any(is_cut(t, prompt) for t in tokenizers) for prompt in prompts)
    if num_cut:
        return (
            f"{num_cut} of {len(prompts)} prompts are cut after {window} tokens and lose their "
            "end; shorten prompt.template, or name fewer classes (prompt.max_classes)"
        )
    if any(is_cut(tokenizer, negative_prompt) for tokenizer in tokenizers):
        return f"--negative-prompt is cut after {window} tokens and loses its end; shorten it"
    return ""


def forecast(missing: Sequence[PlanItem], specs: SpecReader, config: Config) -> str:
    """Return lines on network evaluations, time and prompts of the missing samples.

    Tiles are counted on a few label maps. The time is that of the rows already in the output
    folder; without any there is none to tell.
    """
    if not missing:
        return "nothing is missing"
    grid = STABLE_DIFFUSION
    if (home := find_local(models.find_base(config.base))) is not None:
        grid = read_size_grid(home / "vae", home / "unet")
    some = read_some(missing, specs)
    counts = np.array(
        [count_tiles(spec.label, config.sizes, config.region_rules, grid) for spec in some]
    )
    evaluations = config.steps * (1 + counts[:, 0].mean())
    lines = [
        f"network evaluations: {evaluations:.0f} an image = {config.steps} steps x (1 base pass + "
        f"{counts[:, 0].mean():.1f} of {counts[0, 1]} tiles), mean of {len(some)} label maps; "
        f"{evaluations * len(missing):.3g} in all",
        *_correction(config, 1 + counts[:, 0].mean()),
        _time(config.output, evaluations, len(missing)),
        "prompts, for example:",
        *(f"  {spec.prompt}" for spec in some[:NUM_EXAMPLES]),
    ]
    prompts = [spec.prompt for spec in some]
    if warning := cut_prompts(prompts, config.negative_prompt, config.base):
        lines.append(warning)
    return "\n".join(lines)


def _correction(config: Config, tiles: float) -> list[str]:
    """Return the line on the cost of the in-sampling correction, for the mean number of tiles."""
    corrected = max(0, config.corrected_steps - config.first_step)
    if not corrected:
        return []
    return [
        f"in-sampling correction: {corrected * tiles:.0f} gradients an image = {corrected} steps x "
        f"{tiles:.1f} tiles; each is one more forward pass of the prompt's branch up to the last "
        "tap of the head, and its backward pass"
    ]


def _time(folder: Path, evaluations: float, num_missing: int) -> str:
    rows = read_rows(folder).values() if folder.is_dir() else ()
    done = [row for row in rows if row.get("status") == "ok" and row.get("evaluations")]
    if not done:
        return (
            "time: not known before a first image; make some in the same folder with a small "
            "--n, then repeat --dry-run"
        )
    rate = sum(row["seconds"] for row in done) / sum(row["evaluations"] for row in done)
    seconds = rate * evaluations
    hours = seconds * num_missing / 3600
    return (
        f"time: about {hours:.2f} h of one process, {seconds:.2f} s an image, by the {len(done)} "
        f"images in {folder}; processes share it"
    )
