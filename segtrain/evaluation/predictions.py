"""Which file of a folder predicts which image: by our names, or as cityscapesscripts finds them."""

import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.dataset import Sample
from pipeline.errors import UserError
from pipeline.paths import find_files
from segtrain.prediction_names import CITYSCAPES, cityscapes_names, name_predictions

FRAME = re.compile(r"([A-Za-z-]{1,60}_[0-9]{6}_[0-9]{6}).*\.png")  # city, sequence, frame
LABEL_IDS = re.compile(r".*_labelIds\.png")


def locate(predictions: Path, target: Path, samples: Sequence[Sample]) -> dict[Path, Path]:
    """Return the file of each image: called as segtrain/predict.py calls it, or by its frame.

    Raises `UserError` for an image without prediction, and for an image or a frame with two.
    """
    named = name_predictions(target, [sample.image for sample in samples])
    ours = {image: predictions / name for name, image in named.items()}
    missing = [path for path in ours.values() if not path.is_file()]
    frames = {sample.image: frame_of(sample) for sample in samples}
    label_ids: dict[Path, Path] = {}
    if not all(frames.values()):
        names = cityscapes_names(target, named)
        label_ids = {image: predictions / names[name] for name, image in named.items()}
    if not missing:
        for image, path in label_ids.items():
            if path.is_file():
                raise UserError(
                    f"{path}: is a second prediction of {image.name}, beside {ours[image].name}; "
                    "keep one of them there"
                )
        return ours
    if label_ids and all(path.is_file() for path in label_ids.values()):
        return label_ids
    if not all(frames.values()) or not predictions.is_dir():
        raise UserError(
            f"{missing[0]}: no such prediction; --limit scores the first images, and images with "
            "names of Cityscapes frames need a file whose name begins so"
        )
    found = _by_frame(predictions)
    if absent := [frame for frame in frames.values() if frame not in found]:
        raise UserError(
            f"{predictions}: has no prediction of {absent[0]}, a PNG file whose name begins so; "
            "predict it, or score the first images by --limit"
        )
    return {image: found[str(frame)] for image, frame in frames.items()}


def frame_of(sample: Sample) -> str:
    """Return city, sequence and frame of a Cityscapes image, empty for other images."""
    original = str(sample.row.get("original_image") or sample.image.name)
    found = CITYSCAPES.fullmatch(original.rpartition("/")[2])
    return found[1] if found else ""


def _by_frame(folder: Path) -> dict[str, Path]:
    """Return the PNG files below a folder by city, sequence and frame."""
    paths, _ = find_files(folder, (".png",))
    found: dict[str, Path] = {}
    for path in paths:
        if match := FRAME.fullmatch(path.name):
            if match[1] in found:
                raise UserError(
                    f"{path}: is a second prediction of {match[1]}, beside {found[match[1]]}; keep "
                    "one of them there"
                )
            found[match[1]] = path
    return found


def space_of(paths: Sequence[Path], given: str) -> str:
    """Return the label space of predictions, empty for train ids; `given` is the user's word.

    Files that end in _labelIds.png hold the label ids of Cityscapes.
    """
    ids = [bool(LABEL_IDS.fullmatch(path.name)) for path in paths]
    return given or ("cityscapes_ids" if all(ids) else "")
