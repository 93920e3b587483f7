"""Names for what is predicted of the pictures of a folder."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.dataset import open_dataset
from pipeline.errors import UserError


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
