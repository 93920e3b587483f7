"""Scores against a confusion made by hand, and their tables."""

import pytest
import torch

from segtrain import scoring
from segtrain.mmseg_setup import install_stand_in, setup


@pytest.fixture(autouse=True, scope="module")
def _mmseg() -> None:
    setup()


def test_scores_equal_a_hand_made_confusion() -> None:
    label = torch.tensor([[0, 0, 0, 0], [1, 1, 2, 255]])
    prediction = torch.tensor([[0, 0, 0, 1], [1, 1, 5, 7]])
    score = scoring.score_of(scoring.areas_of(prediction, label), 1)
    assert score["iou"]["road"] == pytest.approx(100 * 3 / 4)
    assert score["iou"]["sidewalk"] == pytest.approx(100 * 2 / 3)
    assert score["iou"]["building"] == 0.0
    assert score["iou"]["pole"] is None  # predicted, but absent in the ground truth
    assert score["miou"] == pytest.approx((75 + 200 / 3 + 0) / 3)
    assert len(score["absent"]) == 16 and "building" not in score["absent"]


def test_areas_sum_exactly_beyond_float32() -> None:
    areas = torch.zeros(4, 19, dtype=torch.float64)
    areas[:, 0] = 2**25
    areas[1:, 0] += 1  # float32 would lose this pixel
    assert scoring.score_of(areas, 1)["iou"]["road"] < 100


def test_mean_counts_each_target_once_and_skips_empty_ones() -> None:
    targets = {
        "a": {"miou": 10.0, "conditions": {"x": {"miou": 90.0}, "y": {"miou": 90.0}}},
        "b": {"miou": 30.0},
        "c": {"miou": None},
    }
    assert scoring.mean_miou(targets) == 20.0


def test_table_shows_conditions_and_dashes() -> None:
    one = {"miou": 50.0, "iou": dict.fromkeys(scoring.labels.CLASS_NAMES)}
    target = {**one, "conditions": {"fog": one}}
    scores = {
        "targets": ["acdc"],
        "checkpoints": [{"name": "run", "targets": {"acdc": target}, "mean_miou": 50.0}],
    }
    text = scoring.table(scores)
    assert "| mIoU % | acdc | acdc/fog | mean |" in text
    assert "left out of the mean" in text and " - |" in text


def test_stand_in_operators_name_themselves() -> None:
    if not install_stand_in():
        pytest.skip("full mmcv is installed")
    import mmcv._ext

    with pytest.raises(Exception, match="nms.*install full mmcv"):
        mmcv._ext.nms()
