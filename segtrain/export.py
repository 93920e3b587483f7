"""Write a trained network as a config and a checkpoint that mmsegmentation itself loads.

    python segtrain/export.py --checkpoint runs/mine/segtrain/generated --output exported

    from mmseg.apis import init_model, inference_model
    model = init_model("exported/config.py", "exported/model.pth", device="cpu")
    result = inference_model(model, "street.png")

The config has no `_base_`. It contains network, test transforms, and a test set in the layout of
`pipeline/export.py --format mmseg`, so `MMSegInferencer` and `Runner.test()` work too. A network of
stock modules does not need this package. One with a diffusion backbone imports `segtrain.registry`
and reads its base model from the folder that the training used, or from --base. The checkpoint
contains tensors and plain values only and loads with `weights_only=True`. With mmcv-lite, `import
segtrain` must come before `import mmseg.apis`; with full mmcv it need not.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline import files, labels, models
from pipeline.config import parse, show
from pipeline.errors import guard
from pipeline.output_files import open_output_file
from segtrain.checkpoints import load_trained, require_trained
from segtrain.recipes import with_tuples

CONFIG_FILE, MODEL_FILE = "config.py", "model.pth"
META = {"classes": list(labels.CLASS_NAMES), "palette": labels.PALETTE.tolist()}


@dataclass(frozen=True)
class Config:
    """Settings of one export."""

    checkpoint: Path = Path("runs/mine/segtrain/generated")
    """Output folder of segtrain/train.py."""
    output: Path = Path("exported")
    """Folder to write config.py and model.pth to."""
    base: str = ""
    """Folder of the base model of a diffusion backbone, if it has moved since the training."""


def check(config: Config) -> None:
    """Find bad input before torch or weights load."""
    require_trained(config.checkpoint)
    if config.base:
        models.find_base(config.base)
    for name in (CONFIG_FILE, MODEL_FILE):
        open_output_file(config.output / name, None, name)


def stock_config(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a whole config of mmsegmentation for a recipe's network, in plain values."""
    pipeline = with_tuples(recipe["test_pipeline"])
    dataset = {
        "type": "BaseSegDataset",
        "metainfo": META,
        "data_root": "data",
        "data_prefix": {"img_path": "img_dir/val", "seg_map_path": "ann_dir/val"},
        "img_suffix": ".png",
        "seg_map_suffix": ".png",
        "pipeline": pipeline,
    }
    ours = _names_ours([recipe["model"], recipe["test_pipeline"]])
    imports = {"imports": ["segtrain.registry"], "allow_failed_imports": False}
    return {
        **({"custom_imports": imports} if ours else {}),
        "default_scope": "mmseg",
        "model": recipe["model"],
        "test_pipeline": pipeline,
        "test_resolution": recipe.get("test_resolution", "low"),  # for import_network.py
        "test_dataloader": {
            "batch_size": 1,
            "num_workers": 0,
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "dataset": dataset,
        },
        "test_evaluator": {"type": "IoUMetric", "iou_metrics": ["mIoU"]},
        "test_cfg": {"type": "TestLoop"},
        "visualizer": {"type": "SegLocalVisualizer", "name": "visualizer"},
    }


def _names_ours(value: Any) -> bool:
    """Tell whether a part of ours is named anywhere in a network or its transforms."""
    if isinstance(value, dict):
        named = str(value.get("type", "")).startswith("Streetforge")
        return named or any(_names_ours(item) for item in value.values())
    return isinstance(value, list) and any(_names_ours(item) for item in value)


def run(config: Config) -> None:
    """Write both files; the network is built once, so that what is written is known to fit."""
    import torch
    from mmengine.config import Config as StockConfig

    model, recipe = load_trained(config.checkpoint, config.base)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    with files.replacing(config.output / MODEL_FILE) as temporary:
        torch.save({"state_dict": state, "meta": {"dataset_meta": META}}, temporary)
    text = StockConfig(stock_config(recipe)).pretty_text
    files.write_bytes(config.output / CONFIG_FILE, f"{text.strip()}\n".encode())
    print(f"{config.output}: {CONFIG_FILE}, {MODEL_FILE}")


def main() -> int | None:
    """Run the command line."""
    config, call = parse(Config, __doc__)
    check(config)
    if call.dry_run:
        show(config)
        print(f"would write {CONFIG_FILE} and {MODEL_FILE} to {config.output}")
        return 0
    run(config)
    return 0


if __name__ == "__main__":
    guard(main)
