"""Put a trained base model and its ControlNet into one folder, with the settings they need.

    python experiments/model_weights.py --base DIR --controlnet DIR --defaults streetforge.json \\
        --output DIR

Writes OUTPUT/base and OUTPUT/controlnet, the layout that `--base OUTPUT/base --controlnet
OUTPUT/controlnet` takes, OUTPUT/segmentation_head if there is one beside the ControlNet, and
OUTPUT/weights.json with the bytes of each part. `--defaults` is the file of settings that
generation and fine-tuning take from a base. `--vae` replaces the autoencoder of the base by one
whose decoder was trained further.
"""

import argparse
import shutil
import sys
from pathlib import Path

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from safetensors.torch import load_file, save_file

from pipeline import files, head_files
from pipeline.base_defaults import SETTINGS_FILE
from pipeline.errors import UserError, guard
from pipeline.models import check_fit, find_base, find_folder
from pipeline.output_folders import require_writable
from pipeline.reading import read_json
from pipeline.weight_files import find_weights

RECORD = "weights.json"
PARTS = ("base", "controlnet", head_files.FOLDER)


def check_places(sources: dict[str, Path], output: Path) -> None:
    """Raise `UserError` if OUTPUT contains inputs, or files that this program did not write."""
    for setting, source in sources.items():
        for target in (output / name for name in PARTS):
            here, there = source.resolve(), target.resolve()
            if here.is_relative_to(there) or there.is_relative_to(here):
                raise UserError(
                    f"--output {output}: {target} would replace {setting} {source} or lie in it; "
                    "choose another folder"
                )
    for target in (output / name for name in PARTS):
        if target.is_symlink() or (target.exists() and not (output / RECORD).is_file()):
            raise UserError(
                f"--output {output}: holds {target.name} and no {RECORD} of this program; choose "
                "another folder"
            )


def weights_of(folder: Path) -> Path:
    """Return the file of an autoencoder's weights; ours have one."""
    return find_weights(folder, "vae").paths[0]


def decoder_of(source: Path, base: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of an autoencoder, in the type of those of `base`.

    Raises `UserError` unless its encoder is that of `base`.
    """
    before, after = (
        load_file(weights_of(folder)) for folder in (base / "vae", find_folder(str(source), "vae"))
    )
    if before.keys() != after.keys() or any(before[k].shape != after[k].shape for k in before):
        raise UserError(f"--vae {source}: has other layers than that of --base; name another one")
    cast = {name: after[name].to(tensor.dtype) for name, tensor in before.items()}
    encoder = [name for name in before if name.startswith(("encoder.", "quant_conv."))]
    if not all(torch.equal(before[name], cast[name]) for name in encoder):
        raise UserError(
            f"--vae {source}: has another encoder than --base, so its latents mean something else; "
            "name one that was trained with --decoder-only"
        )
    return cast


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    for name, text in {
        "base": "folder of a trained base model",
        "controlnet": "folder of its ControlNet",
        "defaults": "JSON file of settings that come with the base model",
        "output": "folder to write",
    }.items():
        parser.add_argument(f"--{name}", required=True, type=Path, help=text)
    parser.add_argument(
        "--vae", type=Path, help="folder of the autoencoder, that of --base if none"
    )
    options = parser.parse_args()
    base, output = Path(find_base(str(options.base))), options.output
    if not base.is_dir():
        raise UserError(
            f"--base {options.base}: is not a folder; name that of a trained base model"
        )
    controlnet = find_folder(str(options.controlnet), "controlnet")
    setting = f"--controlnet {options.controlnet}"
    check_fit(setting, "controlnet", controlnet, str(base))
    parts = {"base": base, "controlnet": controlnet}
    decoder = decoder_of(options.vae, base) if options.vae else None
    if (controlnet.parent / head_files.FOLDER).is_dir():
        head = head_files.find_head(setting, "", str(controlnet), str(base))
        parts[head_files.FOLDER] = head
    settings = files.json_bytes(read_json(options.defaults, dict, remedy="correct --defaults"))
    sources = {"--base": base, "--controlnet": controlnet, "--defaults": options.defaults}
    sources |= {"--vae": options.vae} if decoder else {}
    check_places(sources, output)
    require_writable(output)
    staging = files.temporary_name(output / "staging")
    try:
        for name, folder in parts.items():
            shutil.copytree(folder, staging / name)
        if decoder:
            save_file(decoder, weights_of(staging / "base" / "vae"))
        files.write_bytes(staging / "base" / SETTINGS_FILE, settings)
        weights = sorted(staging.rglob("*.safetensors"))
        sizes = {str(p.parent.relative_to(staging)): p.stat().st_size for p in weights}
        files.write_json(output / RECORD, sizes | {"total": sum(sizes.values())})
        for name in PARTS:
            shutil.rmtree(output / name, ignore_errors=True)
        for name in parts:
            (staging / name).rename(output / name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


if __name__ == "__main__":
    guard(main)
