"""Put a trained base model and its ControlNet into one folder, with the settings they need.

    python experiments/model_weights.py --base DIR --controlnet DIR --defaults streetforge.json \\
        --output DIR

Writes OUTPUT/base and OUTPUT/controlnet, the layout that `--base OUTPUT/base --controlnet
OUTPUT/controlnet` takes, and OUTPUT/weights.json with the bytes of each part. `--defaults` is the
file of settings that generation and fine-tuning take from a base.
"""

import argparse
import shutil
import sys
from pathlib import Path

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline import files
from pipeline.base_defaults import SETTINGS_FILE
from pipeline.errors import guard
from pipeline.models import check_fit, find_base, find_folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    for name in ("base", "controlnet", "defaults", "output"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    options = parser.parse_args()
    base = Path(find_base(str(options.base)))
    controlnet = find_folder(str(options.controlnet), "controlnet")
    check_fit(f"--controlnet {options.controlnet}", "controlnet", controlnet, str(base))
    files.require_writable(options.output)
    for source, name in ((base, "base"), (controlnet, "controlnet")):
        target = options.output / name
        if target.exists():
            shutil.rmtree(target)
        shutil.copytree(source, target)
    files.write_bytes(options.output / "base" / SETTINGS_FILE, options.defaults.read_bytes())
    weights = sorted(options.output.rglob("*.safetensors"))
    sizes = {str(p.parent.relative_to(options.output)): p.stat().st_size for p in weights}
    files.write_json(options.output / "weights.json", sizes | {"total": sum(sizes.values())})


if __name__ == "__main__":
    guard(main)
