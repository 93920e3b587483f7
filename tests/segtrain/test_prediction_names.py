"""Predictions say by their names which image they are of, and in which ids."""

from pathlib import Path

import pytest

from pipeline.dataset import Sample
from pipeline.errors import UserError
from segtrain.evaluation import predictions
from segtrain.prediction_names import cityscapes_names, name_predictions


def test_label_ids_of_other_images_are_not_taken_for_train_ids(
    tmp_path: Path,
) -> None:
    samples = []
    for name in ("a/one.jpg", "two.png"):
        image = tmp_path / "images" / name
        image.parent.mkdir(parents=True, exist_ok=True)
        image.touch()
        samples.append(Sample(image.stem, image, None, {}))
    named = name_predictions(tmp_path / "images", [sample.image for sample in samples])
    names = cityscapes_names(tmp_path / "images", named)
    assert [str(name) for name in names.values()] == ["a/one_labelIds.png", "two_labelIds.png"]
    for name in names.values():
        path = tmp_path / "predicted" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = predictions.locate(tmp_path / "predicted", tmp_path / "images", samples)
    assert found == {s.image: tmp_path / "predicted" / names[n]
                     for n, s in zip(named, samples, strict=True)}  # fmt: skip
    assert predictions.space_of(list(found.values()), "") == "cityscapes_ids"
    for name in named:  # as they were called before, in either ids
        (tmp_path / "predicted" / name).touch()
    with pytest.raises(UserError, match="one_labelIds.png: is a second prediction of one.jpg"):
        predictions.locate(tmp_path / "predicted", tmp_path / "images", samples)
    for name in named:
        (tmp_path / "predicted" / name).unlink()
    (tmp_path / "predicted/two_labelIds.png").unlink()
    with pytest.raises(UserError, match="no such prediction"):
        predictions.locate(tmp_path / "predicted", tmp_path / "images", samples)
