"""The card of a released set: README.md, which the Hugging Face hub reads as well.

It says what the set is, how it was made, which licences it depends on, what it is not fit for, and
its scores where it was scored. All of it is taken from the files of the set and from the settings
of the release.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import labels
from pipeline.dataset_writer import card_header
from pipeline.markdown import code, plain, table
from pipeline.reading import expecting, read_json

SPDX = re.compile(r"[a-z0-9][a-z0-9.-]*")
LIMITS = """- Generated images may differ from their label, above all at small objects and
  boundaries. Read the scores, and inspect `sample/`.
- A diffusion model repeats the biases of its training images. Persons in it are not real.
- Realism does not predict the gain from training. Compare sets by training on them.
- The labels are semantic: they contain classes, not instances."""
LAYOUTS = {
    "webdataset": "tar shards of `<id>.image.png`, `<id>.label.png`, `<id>.json`; "
    "`metadata.jsonl` has the byte range of each file",
    "parquet": "Parquet files with the images inside, for Hugging Face `datasets`",
    "coco_panoptic": "tar files; unpacked into one folder they are COCO's panoptic layout",
    "fiftyone": "tar files; unpacked into one folder FiftyOne's importer reads them",
}


@dataclass(frozen=True)
class CardFields:
    """What the card tells beside the files."""

    name: str
    version: str
    description: str
    licence: str
    chain: tuple[tuple[str, str], ...]
    """part and licence"""
    formats: tuple[str, ...]
    split: str
    command: str


def hub_configs(fields: CardFields) -> list[dict[str, Any]]:
    """Return how the hub and `datasets.load_dataset` make splits of the files."""
    patterns = {"parquet": "parquet/data/*.parquet", "webdataset": "webdataset/*.tar"}
    kind = next((kind for kind in patterns if kind in fields.formats), "")
    if not kind:
        return []
    files = [{"split": fields.split, "path": patterns[kind]}]
    return [{"config_name": "default", "data_files": files}]


def write_card_text(
    fields: CardFields, rows: Sequence[Mapping[str, Any]], run: Mapping[str, Any], quality: Path
) -> str:
    """Return the card. `run`: the set's run.json; `quality`: its folder of scores, if there."""
    licence = fields.licence if SPDX.fullmatch(fields.licence) else "other"
    files = [[code(f"{kind}/"), LAYOUTS[kind]] for kind in fields.formats]
    files += [["`sample/`", "a few samples as plain files, balanced over conditions"]]
    files += [["`SHA256SUMS`", "`sha256sum --check SHA256SUMS`"]]
    files += [["`croissant.json`", "Croissant 1.0"], ["`run.json`", "how the set was made"]]
    parts = [
        f"# {plain(fields.name)}",
        f"{plain(fields.description)} Version {code(fields.version)}.",
        "Labels are PNGs of the 19 Cityscapes train ids; 255 is void (`classes.json`).",
        table(["file", "what it is"], files).rstrip(),
        "## Content",
        _content(rows),
        "## Provenance",
        _provenance(fields, run),
        "## Licence",
        f"This set: {plain(fields.licence)}. It depends on the licences of its inputs:",
        table(["part", "licence"], [[plain(p), plain(text)] for p, text in fields.chain]).rstrip(),
        "## Limits",
        LIMITS,
        *_scores(quality),
    ]
    header = card_header(fields.name, hub_configs(fields), licence)
    return header + "\n\n".join(parts) + "\n"


def _content(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return counts by condition, and the share of each class in the pixels of known classes."""
    conditions = Counter(str(row.get("condition") or "not said") for row in rows)
    sizes = Counter(f"{row['width']}x{row['height']}" for row in rows)
    listed = ", ".join(f"{plain(size)} ({n})" for size, n in sizes.most_common(5))
    pixels = [row["class_pixels"] for row in rows if row.get("class_pixels")]
    parts = [
        f"{len(rows)} samples. Width and height in pixels: {listed}.",
        table(
            ["condition", "samples"], [[plain(c), str(n)] for c, n in sorted(conditions.items())]
        ),
    ]
    if pixels:
        sums = [sum(column) for column in zip(*pixels, strict=True)]
        holders = [sum(n > 0 for n in column) for column in zip(*pixels, strict=True)]
        total = max(sum(sums), 1)
        cells = [
            [plain(name), f"{100 * own / total:.2f}", str(number)]
            for name, own, number in zip(labels.CLASS_NAMES, sums, holders, strict=True)
        ]
        parts.append(table(["class", "% of the pixels", "samples that show it"], cells))
    return "\n\n".join(part.rstrip() for part in parts)


def _provenance(fields: CardFields, run: Mapping[str, Any]) -> str:
    lines = [f"- packed by {code(fields.command)}"]
    if not run:
        return "\n".join([*lines, "- the set has no `run.json`: its provenance is not known"])
    for name in ("digest", "streetforge", "commit"):
        if run.get(name):
            lines.append(f"- {name}: {code(run[name])}")
    config = run.get("config")
    for key, value in sorted(_stated(config if isinstance(config, dict) else {}).items()):
        lines.append(f"- {plain(key)}: {code(value)}")
    return "\n".join(lines)


def _stated(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings of a run that identify what made it; all others are in run.json."""
    wanted = ("models", "base", "controlnet", "unet", "seed", "steps", "guidance_scale", "fusion",
              "scheduler", "dataset", "split", "look", "n")  # fmt: skip
    found = {key: config[key] for key in wanted if config.get(key) not in (None, "", {}, [])}
    return {key: v if isinstance(v, str) else json.dumps(v) for key, v in found.items()}


def _scores(quality: Path) -> list[str]:
    """Return the label fidelity of a scored set, under every segmentation network."""
    path = quality / "summary.json"
    if not path.is_file():
        return []
    summary = read_json(path, dict)
    parts = ["## Scores"]
    with expecting(path, "score the set again by generation/score.py"):
        groups = {"all": summary["all"], **summary["conditions"]}
        for name in summary["all"]["fidelity"]:
            cells = [
                [plain(group), str(int(found["images"])), *_numbers(found["fidelity"][name])]
                for group, found in groups.items()
            ]
            head = ["condition", "images", "mIoU %", "ceiling", "share of it %"]
            parts += [f"Labels under the network {code(name)}:", table(head, cells).rstrip()]
        parts.append(f"{plain(summary['warning'])} All scores: `quality/summary.md`.")
    return parts


def _numbers(scores: Mapping[str, Any]) -> list[str]:
    values = [scores.get(key) for key in ("miou", "ceiling_miou", "share_of_ceiling")]
    return ["-" if value is None else f"{float(value):.1f}" for value in values]


def licence_chain(given: Sequence[str], run: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return part and licence of what a set was made from, of texts PART=LICENCE.

    Without any, the parts that are known are listed, so that none is forgotten.
    """
    named = dict(text.split("=", 1) for text in given)
    config = run.get("config")
    config = config if isinstance(config, dict) else {}
    if config.get("models"):
        parts = ["base model", "ControlNet", "label maps"]
    elif config.get("dataset"):
        parts = [str(config["dataset"])]
    else:
        parts = ["images and labels"]
    if not named:
        named = dict.fromkeys(parts, "not stated; the licence of its source applies")
    return tuple(named.items())
