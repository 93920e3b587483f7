"""What a run says about itself before and after: the dry-run summary and the dataset card."""

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from generation.plan import PlanItem
from generation.settings import Config
from pipeline.dataset import write_card
from pipeline.errors import UserError
from pipeline.labels import CLASS_NAMES
from pipeline.markdown import code, plain

BYTES_PER_PIXEL = 2.2  # PNG picture and label together


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


def summary(config: Config, plan: list[PlanItem], num_layouts: int, num_missing: int) -> str:
    """Return the text of `--dry-run`."""
    classes = ["(any)" if i.rare_class is None else CLASS_NAMES[i.rare_class] for i in plan]
    lines = [
        f"samples: {config.n}, of which {num_missing} are missing in {config.output}",
        f"layouts: {num_layouts} in {config.layouts_folder}",
        f"picture: {config.crop_px[1]}x{config.crop_px[0]} px, fusion {config.fusion}, "
        f"details {config.details}",
        *_counts("conditions", [item.condition for item in plan]),
        *_counts("drawn for class", classes),
        f"disk: about {disk_estimate(config, num_missing) / 1e6:.1f} MB needed, "
        f"{disk_free(config.output) / 1e6:.1f} MB free",
    ]
    return "\n".join(lines)


def write_dataset_card(config: Config, revisions: dict[str, str], num_layouts: int) -> None:
    """Write README.md of the dataset folder; it describes the run, not its progress."""
    origin = "source pictures and label maps" if config.needs_pictures else "source label maps"
    details = ", details from the source pictures" if config.details == "source" else ""
    own = "the base's own U-Net (Style Swap)"
    swap = f"the U-Net {code(config.unet)}" if config.unet else own
    conditions = ", ".join(f"{plain(k)} ({c.share:g})" for k, c in config.prompt.conditions.items())
    revision_lines = "\n".join(f"- {plain(k)}: {code(v)}" for k, v in revisions.items())
    text = f"""
Pictures of street scenes drawn by a diffusion model from label maps; each picture has the label
map it was drawn from.

- `images/`, `labels/`: {config.crop_px[1]}x{config.crop_px[0]} px PNG. Labels are the 19
  Cityscapes train ids, 255 is void.
- `metadata-*.jsonl`: one row per sample with prompt, condition, seed, source label, crop and
  SHA-256 of both files. A sample exists if its row says `"status": "ok"`.
- `run.json`: all settings, model revisions and versions. `classes.json`: names and palette.

Drawn with {swap} of {code(config.base)} and the ControlNet {code(config.controlnet)}, fusion
`{config.fusion}`, {config.steps} steps of {config.solver}, guidance {config.guidance_scale:g},
seed {config.seed}, from {num_layouts} label maps{details}. Conditions and shares: {conditions}.

{revision_lines}

The licences of the base model and of the {origin} apply to this set.
"""
    write_card(config.output, "Generated street scenes", text)
