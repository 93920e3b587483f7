"""Put a trained base model and its ControlNet into one folder, with the settings they need.

    python experiments/model_weights.py --base DIR --controlnet DIR --defaults streetforge.json \\
        --output DIR

Writes OUTPUT/base and OUTPUT/controlnet, the layout that `--base OUTPUT/base --controlnet
OUTPUT/controlnet` takes, OUTPUT/segmentation_head if there is one beside the ControlNet, and
OUTPUT/weights.json with the bytes of each part. `--defaults` is the file of settings that
generation and fine-tuning take from a base.
"""

import argparse
import shutil
import sys
from pathlib import Path

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline import files, head_files
from pipeline.base_defaults import SETTINGS_FILE
from pipeline.errors import UserError, guard
from pipeline.models import check_fit, find_base, find_folder
from pipeline.output_folders import require_writable
from pipeline.reading import read_json

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
    if (controlnet.parent / head_files.FOLDER).is_dir():
        head = head_files.find_head(setting, "", str(controlnet), str(base))
        parts[head_files.FOLDER] = head
    settings = files.json_bytes(read_json(options.defaults, dict, remedy="correct --defaults"))
    sources = {"--base": base, "--controlnet": controlnet, "--defaults": options.defaults}
    check_places(sources, output)
    require_writable(output)
    staging = files.temporary_name(output / "staging")
    try:
        for name, folder in parts.items():
            shutil.copytree(folder, staging / name)
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
