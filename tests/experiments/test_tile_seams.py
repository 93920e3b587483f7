"""Seams of tiles, in images painted by hand."""

import numpy as np
import pytest

from experiments import tile_seams
from pipeline.errors import UserError


@pytest.mark.parametrize(
    ("side", "tile", "stride", "expected"),
    [(256, 128, 64, [64, 128, 192]), (100, 64, 32, [32, 36, 64, 96]), (64, 64, 32, [])],
)
def test_borders_are_where_a_tile_begins_or_ends(side, tile, stride, expected):
    assert tile_seams.borders(side, tile, stride) == expected


def test_a_step_at_a_border_is_a_seam():
    profile = np.ones(255)
    assert tile_seams.seam_ratio(profile, [64, 128, 192]) == 1.0
    stepped = np.zeros(256)
    stepped[64:] = 10.0  # between pixels 63 and 64
    stepped += np.arange(256)
    assert tile_seams.seam_ratio(np.abs(np.diff(stepped)), [64]) == 11.0


@pytest.mark.parametrize("record", ["{}", '{"config": {"tile_px": 3, "stride_px": [8, 16]}}'])
def test_a_folder_that_is_no_generated_set_is_one_line(record, tmp_path):
    (tmp_path / "run.json").write_text(record)
    with pytest.raises(UserError, match="run.json: lacks an expected value"):
        tile_seams.row_of(tmp_path, [], 1)


def test_folders_are_compared_with_the_reference(tiny_dataset, tmp_path, monkeypatch, capsys):
    folder = tiny_dataset(n=2)
    monkeypatch.setattr(
        tile_seams, "read_json", lambda *_: {"config": {"tile_px": [16, 32], "stride_px": [8, 16]}}
    )
    monkeypatch.setattr("sys.argv", ["x", "--images", str(folder), "--reference", str(folder)])
    tile_seams.main()
    row = capsys.readouterr().out.strip().splitlines()[-1]
    assert "| 1.00 | 1.00 |" in row
