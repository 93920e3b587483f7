"""The dataset card: README.md of the output folder."""

from generation.settings import Config
from pipeline.dataset import write_card
from pipeline.markdown import code, plain


def write_dataset_card(config: Config, revisions: dict[str, str], num_layouts: int) -> None:
    """Write README.md of the dataset folder; it describes the run, not its progress."""
    origin = "source pictures and label maps" if config.needs_source_images else "source label maps"
    details = ", details from the source pictures" if config.color_transfer == "source" else ""
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
`{config.fusion}`, {config.steps} steps of {config.scheduler}, guidance {config.guidance_scale:g},
seed {config.seed}, from {num_layouts} label maps{details}. Conditions and shares: {conditions}.

{revision_lines}

The licences of the base model and of the {origin} apply to this set.
"""
    write_card(config.output, "Generated street scenes", text)
