"""Names for what is predicted of the pictures of a folder, and whose predictions a folder holds."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.dataset import open_dataset
from pipeline.errors import UserError
from pipeline.reading import read_json, shortened

CITYSCAPES = re.compile(r"([^_/]+_[0-9]{6}_[0-9]{6})_leftImg8bit\.[A-Za-z]+")


def name_predictions(folder: Path, pictures: Sequence[Path]) -> dict[Path, Path]:
    """Return the first pictures of `folder` by the relative PNG file of their predictions.

    A picture keeps its place below `folder`. One elsewhere, where pipeline/prepare.py leaves the
    pictures, goes by the id of its sample.
    """
    named: dict[Path, Path] = {}
    ids: list[str] = []
    for index, picture in enumerate(pictures):
        if picture.is_relative_to(folder) and ".." not in picture.relative_to(folder).parts:
            name = picture.relative_to(folder).with_suffix(".png")
        else:
            ids = ids or [sample.id for sample in open_dataset(folder, labelled=False)]
            name = Path(f"{ids[index]}.png")
        if name in named:
            raise UserError(f"{picture}: would overwrite {named[name]}; rename one of them")
        named[name] = picture
    return named


def cityscapes_name(name: Path, picture: Path) -> Path:
    """Return the name by which cityscapesscripts finds the prediction of a Cityscapes picture.

    It looks below its folder of results for files that begin with city, sequence and frame. Other
    pictures keep `name`.
    """
    found = CITYSCAPES.fullmatch(picture.name)
    return Path(f"{found[1]}_pred_labelIds.png") if found else name


def require_unique(names: Iterable[Path]) -> None:
    """Raise `UserError` if two predictions would have the same name."""
    seen: set[Path] = set()
    for name in names:
        if name in seen:
            raise UserError(f"{name}: two pictures have this frame; predict them into two folders")
        seen.add(name)


def require_predictions_of(predictions: Path, target: Path) -> None:
    """Raise `UserError` if the program that wrote `predictions` records another set of pictures.

    Names are numbers in most sets, so the predictions of one fit the labels of the next.
    """
    for path in (predictions / "config.json", predictions.parent / "config.json"):
        if not path.is_file():
            continue
        config = read_json(path, dict).get("config")
        config = config if isinstance(config, dict) else {}
        made_of = config.get("images", config.get("target"))
        moved = not isinstance(made_of, str) or not Path(made_of).is_dir()  # nothing to compare
        if not moved and Path(made_of).resolve() != target.resolve():
            raise UserError(
                f"{predictions}: {path} says that these are predictions of "
                f"{shortened(made_of)}, not of {target}; give that folder as --targets, or predict "
                "this one"
            )
        return
