"""Write the model card of the pocket model from its trainings and measurements.

    python experiments/model_card.py --workspace runs/pocket_model --output DIR

Reads the workspace of `pipeline/run.py --recipe pocket_model`. Writes OUTPUT/README.md, the
training logs and the images that it shows. A part that was not measured is left out.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline import files
from pipeline.errors import UserError, guard
from pipeline.labels import CLASS_NAMES, SMALL_CLASSES
from pipeline.markdown import code, table
from pipeline.output_folders import require_writable
from pipeline.reading import expecting, read_json

TRAININGS = {
    "vae": "autoencoder",
    "prior": "U-Net and text encoder",
    "unet": "U-Net fine-tuned on the source (U_S)",
    "controlnet": "ControlNet on U_S",
}
FIGURES = {
    "figures/curves.svg": "Training losses",
    "figures/samples.jpg": "Label maps, renders of the same scenes, and generated images",
    "measured/distances/neighbours_generated.png": "Generated images and their nearest neighbours",
}


def trained(workspace: Path) -> Iterator[list[str]]:
    """Yield a row for each training: name, updates, samples seen, time."""
    timings = read_json(workspace / "timings.json")["stages"]
    for stage, title in TRAININGS.items():
        training = read_json(workspace / stage / "config.json")["config"]["training"]
        accumulation = training.get("gradient_accumulation", 1)
        seen = training["steps"] * training["batch_size"] * accumulation
        minutes = timings.get(stage, {}).get("seconds", 0) / 60
        yield [title, f"{training['steps']:,}", f"{seen:,}", f"{minutes:.0f} min"]


def measured(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (measurement, result) for each file in the folder of measurements."""
    psnr = folder / "reconstructions" / "psnr.json"
    if psnr.exists():
        values: dict[str, Any] = read_json(psnr)
        looks = ", ".join(f"{name} {v}" for name, v in values.items() if name != "mean")
        yield "PSNR of reconstructions of held-out renders, dB", f"**{values['mean']}** ({looks})"
    fidelity = folder / "fidelity" / "fidelity.json"
    if fidelity.exists():
        (oracle,) = read_json(fidelity)["checkpoints"]
        best = oracle["targets"]["heldout"]
        for name in ("reconstructions", "generated"):
            seen = oracle["targets"][name]
            title = f"oracle mIoU on {name}, compared with held-out renders"
            yield title, share(seen["miou"], best["miou"])
            yield f"the same for small classes ({name})", share(small(seen), small(best))
    adherence = folder / "looks" / "looks.json"
    if adherence.exists():
        result = read_json(adherence)
        (top1,) = (v["top1"] for v in result["generated"].values())
        yield (
            "accuracy of the look classifier in percent, compared with held-out renders",
            share(top1, result["rendered"]["top1"]),
        )
    distances = folder / "distances" / "distances.json"
    if distances.exists():
        for name, values in read_json(distances)["sets"].items():
            text = ", ".join(
                f"{key} {values[key]}" for key in ("frechet", "kernel", "precision", "recall")
            )
            yield f"distances of {Path(name).name} from held-out renders", text


def small(entry: dict[str, Any]) -> float:
    """Return the mean IoU of the small classes, in percent."""
    ious = [entry["iou"].get(CLASS_NAMES[i]) for i in SMALL_CLASSES]
    known = [iou for iou in ious if iou is not None]
    return sum(known) / max(1, len(known))


def share(value: float, best: float) -> str:
    """Return `value of best (share %)`."""
    return f"{value:.1f} of {best:.1f} ({100 * value / max(best, 1e-9):.0f} %)"


def parts(model: Path) -> Iterator[list[str]]:
    """Yield a row for each network: its folder, class, channels and megabytes."""
    sizes: dict[str, int] = read_json(model / "weights.json")
    for name, size in sizes.items():
        if name != "total":
            config = read_json(model / name / "config.json")
            kind = config.get("_class_name") or config["architectures"][0]
            channels = config.get("block_out_channels") or [config.get("hidden_size")]
            yield [code(name), kind, " ".join(map(str, channels)), f"{size / 1e6:.1f} MB"]
    yield ["all", "", "", f"{sizes['total'] / 1e6:.1f} MB"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--workspace", required=True, type=Path, help="workspace of pocket_model")
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    options = parser.parse_args()
    workspace, output = options.workspace, options.output
    if not (workspace / "model" / "weights.json").exists():
        raise UserError(f"--workspace {workspace}: has no model; run the recipe pocket_model first")
    with expecting(workspace):
        write_card(workspace, output)


def write_card(workspace: Path, output: Path) -> None:
    """Write the card, its images and the training logs."""
    require_writable(output)
    (output / "training").mkdir(exist_ok=True)
    for stage in TRAININGS:
        rows = (workspace / stage / "metrics.jsonl").read_text().splitlines()
        kept = [{k: v for k, v in json.loads(r).items() if k != "time_s"} for r in rows]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        files.write_bytes(output / "training" / f"{stage}.jsonl", text.encode())
    shown = ""
    for name, title in FIGURES.items():
        if (found := workspace / name).exists():
            shutil.copyfile(found, output / found.name)
            shown += f"\n![{title}]({found.name})\n\n{title}.\n"
    lines = [
        "# Pocket diffusion: model card\n",
        "A small latent diffusion model of street scenes in Stable Diffusion's folder layout, and "
        "a semantic ControlNet for it. Made by `python pipeline/run.py --recipe pocket_model`. "
        "Licence: Apache-2.0.\n",
        table(["part", "class", "channels", "size"], list(parts(workspace / "model"))),
        "## Training\n",
        "The base model was trained on captioned renders of Pocket City's collection. It was "
        "trained on no label, and on no image of the source or of a target. U_S and the ControlNet "
        "were trained on the labelled source.\n",
        table(["training", "updates", "samples", "time"], list(trained(workspace))),
        "## Measured\n",
        table(["measurement", "result"], list(measured(workspace / "measured"))),
        shown,
    ]
    files.write_bytes(output / "README.md", "\n".join(lines).encode())


if __name__ == "__main__":
    guard(main)
