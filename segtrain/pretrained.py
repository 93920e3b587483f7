"""Turn public pretrained weights into a file for `segtrain/train.py --init`.

    python segtrain/pretrained.py --recipe configs/segtrain/daformer_gta.py \\
        --weights nvidia/mit-b5@COMMIT --output weights/mit_b5.safetensors

`--weights` is a pinned hub id, a folder with model.safetensors, a safetensors file, or a .pth file,
which is read without being executed. Supported are MiT and ResNet of transformers, MiT of
SegFormer's authors, ResNet of torchvision and timm, and for recipes with a foundation backbone
DINOv2 and DINOv3 of transformers. Shapes must be those of the recipe's backbone.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline import files, hub
from pipeline.config import parse, show
from pipeline.errors import UserError, guard
from pipeline.output_files import check_output_file
from pipeline.output_folders import require_writable
from pipeline.weight_files import read_header
from segtrain.backbone_weights import require_fit
from segtrain.recipe_checks import named_faults
from segtrain.recipes import require_recipe

WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True)
class Config:
    """Settings of one conversion."""

    recipe: Path = Path("configs/segtrain/segformer_gta.py")
    """Recipe whose backbone the weights are for."""
    weights: str = ""
    """Hub id pinned as owner/name@<40-digit commit>, a folder, a .safetensors or a .pth file."""
    output: Path = Path("weights/backbone.safetensors")
    """File to write."""


def check(config: Config) -> None:
    """Find bad input before torch or weights load."""
    require_recipe(config.recipe)
    check_output_file(config.output, None, "file of weights")
    if config.output.suffix != ".safetensors":
        raise UserError(f"--output {config.output}: must end in .safetensors; rename it")
    if hub.is_pinned(config.weights):
        return
    path = Path(config.weights)
    if config.weights and path.is_dir():
        path = path / WEIGHTS_FILE
    if not config.weights or not path.is_file():
        raise UserError(
            f"--weights {config.weights!r}: is neither a file nor a folder with {WEIGHTS_FILE} nor "
            "a hub id pinned as owner/name@<40-digit commit>"
        )
    if path.suffix == ".safetensors":
        read_header(path)


def convert(config: Config) -> dict[str, Any]:
    """Return the weights under the names of the recipe's backbone.

    Raises `UserError` that names the first three mismatches if the architecture is another one.
    """
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    from segtrain.recipes import load_recipe

    recipe = load_recipe(config.recipe)
    options = recipe.model.backbone
    if "base" in options:
        raise UserError(f"{config.recipe}: has a diffusion backbone; give its model by --base")
    init_default_scope("mmseg")
    with named_faults(str(config.recipe)):
        backbone = MODELS.build({**options, "pretrained": None} if "pretrained" in options
                                else options)  # fmt: skip
    path = Path(config.weights)
    if hub.is_pinned(config.weights):
        path = hub.fetch_files(config.weights, ("config.json", WEIGHTS_FILE))
    found = backbone_state(backbone, path)
    part = getattr(backbone, "pretrained_part", backbone)
    wanted = {name: tuple(value.shape) for name, value in part.state_dict().items()}
    require_fit({n: tuple(v.shape) for n, v in found.items()}, wanted, Path(config.weights))
    return found


def backbone_state(backbone: Any, path: Path) -> dict[str, Any]:
    """Return weights of a file or folder under the backbone's names."""
    if hasattr(backbone, "read_pretrained"):  # a network of transformers, which knows its files
        return backbone.read_pretrained(path)
    from segtrain.backbones.weight_names import to_mmsegmentation
    from segtrain.stored_weights import read_weights

    return to_mmsegmentation(read_weights(path / WEIGHTS_FILE if path.is_dir() else path))


def main() -> int | None:
    """Run the command line."""
    config, call = parse(Config, __doc__)
    check(config)
    if call.dry_run:
        show(config)
        print(f"would write {config.output}")
        return 0
    from safetensors.torch import save_file

    require_writable(config.output.absolute().parent)
    state = {name: value.contiguous().clone() for name, value in convert(config).items()}
    with files.replacing(config.output) as temporary:
        save_file(state, temporary)
    print(f"{config.output}: {len(state)} tensors for the backbone of {config.recipe}")
    return 0


if __name__ == "__main__":
    guard(main)
