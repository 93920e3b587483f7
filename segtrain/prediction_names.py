"""Names for the predictions of the images of a folder, and whose predictions a folder holds."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.dataset import open_dataset
from pipeline.errors import UserError
from pipeline.metadata import is_dataset
from pipeline.reading import read_json, shortened
from pipeline.tar_members import find_member

CITYSCAPES = re.compile(r"([A-Za-z-]{1,60}_[0-9]{6}_[0-9]{6})_leftImg8bit\.[A-Za-z]+")


def name_predictions(folder: Path, images: Sequence[Path]) -> dict[Path, Path]:
    """Return the first images of `folder` by the relative PNG file of their predictions.

    An image keeps its place below `folder`. One elsewhere, or in a tar shard, goes by the id of
    its sample.
    """
    named: dict[Path, Path] = {}
    ids: list[str] = []
    for index, image in enumerate(images):
        is_inside = image.is_relative_to(folder) and ".." not in image.relative_to(folder).parts
        if is_inside and not find_member(image):
            name = image.relative_to(folder).with_suffix(".png")
        else:
            ids = ids or [sample.id for sample in open_dataset(folder, labelled=False)]
            name = Path(f"{ids[index]}.png")
        if name in named:
            raise UserError(f"{image}: would overwrite {named[name]}; rename one of them")
        named[name] = image
    return named


def cityscapes_names(folder: Path, named: Mapping[Path, Path]) -> dict[Path, Path]:
    """Return for the names of predictions those of label ids, which all end in _labelIds.png.

    cityscapesscripts looks below its folder of results for files that begin with city, sequence
    and frame. They come from the name of the image, or in a prepared folder from that of the
    original. Other images keep place and stem: by the ending nobody takes their label ids for train
    ids. Raises `UserError` for two images of one frame.
    """
    originals = {}
    if is_dataset(folder):
        samples = open_dataset(folder, labelled=False)
        originals = {s.image: str(s.row.get("original_image") or "") for s in samples}
    names: dict[Path, Path] = {}
    for name, image in named.items():
        original = (originals.get(image) or image.name).rpartition("/")[2]
        found = CITYSCAPES.fullmatch(original)
        names[name] = (
            Path(f"{found[1]}_pred_labelIds.png")
            if found
            else name.with_name(f"{name.stem}_labelIds.png")
        )
    if len(set(names.values())) < len(names):
        twice = next(n for n in names.values() if list(names.values()).count(n) > 1)
        raise UserError(f"{twice}: two images of {folder} have this frame; predict them apart")
    return names


def require_predictions_of(predictions: Path, target: Path) -> None:
    """Raise `UserError` if the program that wrote `predictions` records another set of images.

    Names are numbers in most sets, so the predictions of one fit the labels of the next.
    """
    for path in (predictions / "config.json", predictions.parent / "config.json"):
        if not path.is_file():
            continue
        config = read_json(path, dict).get("config")
        config = config if isinstance(config, dict) else {}
        made_of = config.get("images", config.get("target"))
        if not isinstance(made_of, str) or not Path(made_of).is_dir():
            return  # it has moved: nothing to compare
        if Path(made_of).resolve() != target.resolve():
            raise UserError(
                f"{predictions}: {path} says that these are predictions of "
                f"{shortened(made_of)}, not of {target}; give that folder as --targets, or predict "
                "this one"
            )
        return
