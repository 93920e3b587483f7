"""The attribute classifiers of a scoring: trained once, kept in its folder, checked on the rest."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from generation.quality import looks
from pipeline import files
from pipeline.dataset import Sample
from pipeline.errors import UserError
from pipeline.reading import read_json

HELDOUT = 5  # every fifth image is kept out of the training and tells the classifier's ceiling
RECORD = "classifiers.json"


@dataclass(frozen=True)
class Classifier:
    """A classifier of one attribute, and the names that it knows."""

    model: torch.nn.Module
    names: list[str]


def check(samples: Sequence[Sample], attributes: Sequence[str]) -> None:
    """Raise `UserError` unless each attribute has two values or more to learn, on enough images."""
    for attribute in attributes:
        named = [n for s in samples if (n := looks.name_of(s, attribute)) is not None]
        if len(set(named)) < 2:
            raise UserError(
                f"--looks: its rows name {len(set(named))} values of {attribute!r}; two are the "
                "least, give a dataset folder with several or leave it out of --attributes"
            )
        if len(named) - len(named[::HELDOUT]) < looks.BATCH:
            raise UserError(
                f"--looks: {len(named)} images name {attribute!r}, too few to learn from; "
                f"{looks.BATCH * HELDOUT // (HELDOUT - 1) + 1} are the least"
            )


def train(folder: Path, samples: Sequence[Sample], attributes: Sequence[str]) -> None:
    """Train what is not there yet and keep it in `folder`, with its accuracy on held-out images."""
    record: dict[str, Any] = {}
    if (folder / RECORD).exists():
        record = read_json(folder / RECORD, dict)
    for attribute in attributes:
        if attribute in record:
            continue
        named = [s for s in samples if looks.name_of(s, attribute) is not None]
        heldout = named[::HELDOUT]
        images, indices, names = looks.load(
            [s for i, s in enumerate(named) if i % HELDOUT], attribute
        )
        model = looks.train(images, indices, len(names))
        tensors = {k: v.contiguous() for k, v in model.state_dict().items()}
        with files.replacing(_weights(folder, attribute)) as path:
            save_file(tensors, path)
        accuracy = looks.accuracy(model, *looks.load(heldout, attribute, names))
        record[attribute] = {"names": names, "heldout": accuracy}
        files.write_json(folder / RECORD, record)


def load(folder: Path, attributes: Sequence[str]) -> tuple[dict[str, Classifier], dict[str, Any]]:
    """Return the classifiers in `folder` and their record."""
    record = read_json(folder / RECORD, dict)
    found = {}
    for attribute in attributes:
        path = _weights(folder, attribute)
        try:
            names = [str(name) for name in record[attribute]["names"]]
            model = looks.build(len(names))
            model.load_state_dict(load_file(path))
            _ = record[attribute]["heldout"]["top1"]
        except (LookupError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise UserError(
                f"{path}: does not fit {RECORD} or is damaged ({type(error).__name__}); delete "
                f"the folder {folder} and score again"
            ) from None
        found[attribute] = Classifier(model.eval(), names)
    return found, record


def _weights(folder: Path, attribute: str) -> Path:
    return folder / f"classifier-{attribute}.safetensors"
