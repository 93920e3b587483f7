"""The dataset folders of a training: each counts once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.start import open_samples
from finetune.style_images import open_style_images
from pipeline.errors import UserError
from pipeline.setting_checks import require_each_once

REMEDY = "is named twice; name each folder once$"


def test_a_folder_that_is_named_twice_is_refused(
    tiny_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    one, other = tiny_dataset(1, 8, 8), tiny_dataset(1, 8, 8)
    assert len(open_samples((str(one), str(other)), labelled=True)) == 2
    (tmp_path / "link").symlink_to(one)
    for again in (one, one / ".." / one.name, tmp_path / "link"):
        named = (str(one), str(other), str(again))
        with pytest.raises(UserError, match=f"^--data {again}: {REMEDY}"):
            open_samples(named, labelled=True)
        with pytest.raises(UserError, match=f"^--style-images {again}: {REMEDY}"):
            open_style_images(named, "--prompt", "")


def test_so_is_an_address() -> None:
    require_each_once("--data", ("s3://bucket/one", "s3://bucket/other"))
    with pytest.raises(UserError, match=f"^--data s3://bucket/one: {REMEDY}"):
        require_each_once("--data", ("s3://bucket/one", "s3://bucket/one"))
