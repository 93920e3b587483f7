"""What a run will do, told before it starts and without torch: rows of the plan, and its price."""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from generation import tiles
from generation.label_maps import LabelMap, LabelMapFolder
from generation.plan import PlanItem, describe
from generation.settings import Config
from generation.sizes import padded_crop
from pipeline import files, models
from pipeline.errors import UserError
from pipeline.hub import find_local
from pipeline.labels import CLASS_NAMES
from pipeline.metadata import read_rows
from pipeline.output_files import check_output_file
from pipeline.output_folders import require_writable
from pipeline.prompt_encoder import is_cut, load_tokenizers
from pipeline.reading import parse_json
from pipeline.rows import MAX_ROW_BYTES, sample_id
from pipeline.size_grid import STABLE_DIFFUSION, SizeGrid, read_size_grid

NUM_SAMPLED = 16  # label maps read for a forecast
NUM_EXAMPLES = 3
THREADS = 8
BYTES_PER_PIXEL = 2.2  # PNG image and label together


def disk_estimate(config: Config, num_missing: int) -> int:
    """Return about how many bytes the missing samples need."""
    return int(num_missing * config.crop_px[0] * config.crop_px[1] * BYTES_PER_PIXEL)


def disk_free(folder: Path) -> int:
    """Return the free bytes where `folder` is or will be."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def require_disk(config: Config, num_missing: int) -> None:
    """Raise `UserError` if the missing samples will not fit."""
    need, free = disk_estimate(config, num_missing), disk_free(config.output)
    if need > free:
        raise UserError(
            f"{config.output}: {num_missing} samples need about {need / 1e6:.1f} MB but "
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
    classes = ["(any)" if i.rare_class is None else CLASS_NAMES[i.rare_class] for i in plan]
    lines = [
        f"samples: {config.n}, of which {num_missing} are missing in {config.output}",
        f"label maps: {num_label_maps} in {config.label_maps_folder}",
        f"image: {config.crop_px[1]}x{config.crop_px[0]} px, fusion {config.fusion}, "
        f"color transfer {config.color_transfer}",
        *_counts("conditions", [item.condition for item in plan]),
        *_counts("drawn for class", classes),
        f"disk: about {disk_estimate(config, num_missing) / 1e6:.1f} MB needed, "
        f"{disk_free(config.output) / 1e6:.1f} MB free",
    ]
    return "\n".join(lines)


def write_plan(
    path: Path,
    plan: Sequence[PlanItem],
    source: LabelMapFolder,
    label_maps: list[LabelMap],
    config: Config,
) -> None:
    """Write what is known of every sample before it is drawn, one JSON row each, in id order."""
    check_plan_file(path)
    require_writable(path.absolute().parent, "--plan-file")
    read = lru_cache(4 * THREADS)(source.read)

    def line(item: PlanItem) -> str:
        label_map = label_maps[item.label_map]
        _, row = describe(item, read(label_map.name), label_map, config)
        return json.dumps({"id": sample_id(item.index), **row}) + "\n"

    lines = [""] * len(plan)
    by_label_map = sorted(plan, key=lambda item: item.label_map)  # so that each map is read once
    with ThreadPoolExecutor(THREADS) as pool:
        found = tqdm(pool.map(line, by_label_map), total=len(plan), unit="row", desc="plan")
        for item, text in zip(by_label_map, found, strict=True):
            lines[item.index] = text
    files.write_bytes(path, "".join(lines).encode())


def check_plan_file(path: Path) -> None:
    """Raise `UserError` unless a plan may be written to `path`: a new file, or an older plan."""
    check_output_file(path, _is_plan, "plan", setting="--plan-file")


def _is_plan(path: Path) -> bool:
    """Tell whether a regular file begins as `write_plan` begins one, or is empty."""
    with open(path, "rb") as handle:
        line = handle.readline(MAX_ROW_BYTES)
    if not line:
        return True
    try:
        row = parse_json(line, dict)
    except ValueError:
        return False
    return "source_label" in row and "fusion" in row and "status" not in row


def count_tiles(label: np.ndarray, config: Config, grid: SizeGrid) -> tuple[int, int]:
    """Return how many tiles the label crop leaves to draw, and how many its canvas has."""
    if config.fusion == "none":
        return 0, 0
    whole, latent_px = padded_crop(config, grid), grid.vae_scale_factor
    canvas = tuple(round(side * config.canvas_scale) // latent_px for side in whole)
    tile, stride = (
        (size[0] // latent_px, size[1] // latent_px) for size in (config.tile_px, config.stride_px)
    )
    boxes = tiles.tile_boxes(canvas, tile, stride)
    missing = [(0, big - own) for big, own in zip(whole, label.shape, strict=True)]
    label = np.pad(label, missing, mode="edge")
    mask = tiles.held_mask(
        label,
        canvas,
        min_share=config.min_region_share,
        classes=config.base_pass_ids,
        fusion=config.fusion,
    )
    return len(tiles.chosen_boxes(boxes, tile, mask, config.tile_selection)), len(boxes)


def sample_rows(
    missing: Sequence[PlanItem], source: LabelMapFolder, label_maps: list[LabelMap], config: Config
) -> list[tuple[np.ndarray, dict[str, Any]]]:
    """Return label crop and row of up to NUM_SAMPLED of the missing samples."""
    chosen = [missing[i] for i in np.linspace(0, len(missing) - 1, NUM_SAMPLED).astype(int)]
    drawn = []
    for item in dict.fromkeys(chosen):
        label_map = label_maps[item.label_map]
        drawn.append(describe(item, source.read(label_map.name), label_map, config))
    return drawn


def cut_prompts(rows: Sequence[dict[str, Any]], config: Config) -> str:
    """Return a line if the text window of the base cuts prompts of `rows`, else "".

    A base that is not on this disk tells nothing yet.
    """
    home = find_local(models.find_base(config.base))
    if home is None:
        return ""
    tokenizers = load_tokenizers(home)
    prompts = [row["prompt"] for row in rows]
    cut = sum(any(is_cut(t, prompt) for t in tokenizers) for prompt in prompts)
    negative = any(is_cut(t, config.negative_prompt) for t in tokenizers)
    window = min(t.model_max_length for t in tokenizers)
    if not cut and not negative:
        return ""
    what = f"{cut} of {len(prompts)} prompts" if cut else "--negative-prompt"
    verb = "are" if cut else "is"
    return (
        f"{what} {verb} cut after {window} tokens and lose what stands last; shorten "
        f"{'prompt.template, or name fewer classes (prompt.max_classes)' if cut else 'it'}"
    )


def forecast(
    missing: Sequence[PlanItem], source: LabelMapFolder, label_maps: list[LabelMap], config: Config
) -> str:
    """Return lines on network evaluations, time and prompts of the missing samples.

    Tiles are counted on a few label maps. The time is that of the rows already in the output
    folder; without any there is none to tell.
    """
    if not missing:
        return "nothing is missing"
    grid = STABLE_DIFFUSION
    if (home := find_local(models.find_base(config.base))) is not None:
        grid = read_size_grid(home / "vae", home / "unet")
    drawn = sample_rows(missing, source, label_maps, config)
    counts = np.array([count_tiles(label, config, grid) for label, _ in drawn])
    evaluations = config.steps * (1 + counts[:, 0].mean())
    lines = [
        f"network evaluations: {evaluations:.0f} an image = {config.steps} steps x (1 base pass + "
        f"{counts[:, 0].mean():.1f} of {counts[0, 1]} tiles), mean of {len(drawn)} label maps; "
        f"{evaluations * len(missing):.3g} in all",
        _time(config, evaluations, len(missing)),
        "prompts, for example:",
        *(f"  {row['prompt']}" for _, row in drawn[:NUM_EXAMPLES]),
    ]
    if warning := cut_prompts([row for _, row in drawn], config):
        lines.append(warning)
    return "\n".join(lines)


def _time(config: Config, evaluations: float, num_missing: int) -> str:
    rows = read_rows(config.output).values() if config.output.is_dir() else ()
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
        f"images in {config.output}; processes share it"
    )
