"""Filters of one label map against maps worked out by hand, and their calibration."""

import numpy as np
import pytest

from generation.quality import repair
from generation.quality.fidelity import Counts

ROAD, CAR, SKY, VOID = 0, 13, 10, 255


def costs_of(*planes: tuple[int, list[list[float]]]) -> np.ndarray:
    shape = np.shape(planes[0][1])
    costs = np.full((19, *shape), 9.0, np.float32)
    for class_id, values in planes:
        costs[class_id] = values
    return costs


def test_freemask_drops_above_the_limit_of_the_own_class() -> None:
    label = np.array([[ROAD, ROAD, CAR, CAR, VOID]], np.uint8)
    costs = costs_of((ROAD, [[0.1, 1.1, 0, 0, 0]]), (CAR, [[0, 0, 1.1, 2.1, 0]]))
    limits = np.zeros(19)
    limits[ROAD], limits[CAR] = 1.0, 2.0
    assert repair.drop_hard(label, costs, limits).tolist() == [[ROAD, VOID, CAR, VOID, VOID]]


def test_the_band_filter_leaves_the_inside_alone() -> None:
    label = np.array([[ROAD] * 4 + [CAR] * 4], np.uint8)
    seen = [[CAR, ROAD, ROAD, CAR, CAR, CAR, CAR, ROAD]]
    costs = np.full((19, 1, 8), 9.0, np.float32)
    np.put_along_axis(costs, np.array(seen)[None], 0.0, 0)
    expected = [[ROAD, ROAD, ROAD, VOID, CAR, CAR, CAR, CAR]]
    assert repair.drop_band(label, costs, 1).tolist() == expected


def test_a_vote_drops_what_others_show_and_keeps_what_none_shows() -> None:
    label = np.array([[CAR, CAR, CAR, VOID]], np.uint8)
    seen = [
        np.array([[CAR, ROAD, ROAD, ROAD]]),
        np.array([[CAR, CAR, ROAD, ROAD]]),
        np.array([[ROAD, CAR, ROAD, ROAD]]),
    ]
    found = [one.tolist()[0] for one in repair.drop_outvoted(label, seen, 0.5)]
    assert found[0] == [CAR, VOID, CAR, VOID]
    assert found[1] == [CAR, CAR, CAR, VOID]
    assert found[2] == [VOID, CAR, CAR, VOID]
    assert repair.drop_outvoted(label, seen[2:], 0.5)[0].tolist() == label.tolist()


def test_transport_moves_a_misplaced_object_and_keeps_its_area() -> None:
    """The car is one pixel to the right of where the label has it."""
    label = np.array([[CAR, CAR, ROAD, ROAD, ROAD, VOID]], np.uint8)
    costs = costs_of((CAR, [[5, 0, 0, 5, 5, 0]]), (ROAD, [[0, 5, 5, 0, 0, 0]]))
    found = repair.transport(label, costs, stay=1.0, temperature=0.1)
    assert found.tolist() == [[ROAD, CAR, CAR, ROAD, ROAD, VOID]]
    assert np.array_equal(repair.transport(label, costs, stay=20.0, temperature=0.1), label)
    biased = costs.copy()
    biased[CAR] += 8.0  # a network that rarely says car: the areas bring it back
    assert np.array_equal(repair.transport(label, biased, stay=1.0, temperature=0.1), found)
    assert np.array_equal(repair.transport(np.full((1, 6), CAR, np.uint8), costs, stay=0.0,
                                           temperature=0.1), np.full((1, 6), CAR))  # fmt: skip


def row(condition: str, right: int, labelled: int, loss: float) -> dict:
    areas = np.zeros((3, 19), np.int64)
    areas[:, ROAD] = right, right, labelled
    losses = np.zeros(19)
    losses[ROAD] = loss
    counts = Counts(areas, areas, np.zeros((2, 19), np.int64), losses)
    return {"condition": condition, "fidelity": {"judge": counts.to_row()}}


def test_calibration_is_of_class_and_condition() -> None:
    rows = [row("day", 9, 10, 1.0), row("day", 9, 10, 3.0), row("night", 5, 10, 20.0)]
    losses, recalls = repair.mean_losses(rows, "judge", min_pixels=1)
    assert losses["day"][ROAD] == pytest.approx(0.2) and losses["night"][ROAD] == 2.0
    assert recalls["day"][ROAD] == pytest.approx(0.9) and recalls["night"][ROAD] == 0.5
    assert repair.relative_score(rows[2], "judge", recalls) == 1.0, "usual for the night"
    losses, _ = repair.mean_losses(rows, "judge", min_pixels=15)  # the night has too few pixels
    assert losses["night"][ROAD] == pytest.approx(24 / 30)


def test_class_that_the_calibration_lacks_is_kept_and_not_judged() -> None:
    """Half of the image is a class of which no loss and no recall is known."""
    losses, recalls = repair.mean_losses(
        [row("day", 8, 10, 1.0)], "judge", min_pixels=1, conditions=["fog"]
    )
    label = np.array([[ROAD, ROAD, CAR, CAR]], np.uint8)
    costs = costs_of((ROAD, [[0.0, 5.0, 9.0, 9.0]]), (CAR, [[9.0, 9.0, 0.1, 5.0]]))
    for condition in ("day", "fog"):
        kept = repair.drop_hard(label, costs, 1.25 * losses[condition])
        assert kept.tolist() == [[ROAD, VOID, CAR, CAR]]
    half = row("day", 4, 10, 1.0)
    counts = half["fidelity"]["judge"]["areas"]
    counts[0][CAR], counts[1][CAR], counts[2][CAR] = 10, 10, 10
    assert repair.relative_score(half, "judge", recalls) == pytest.approx(0.5)
    counts[0][ROAD] = counts[1][ROAD] = counts[2][ROAD] = 0
    assert repair.relative_score(half, "judge", recalls) == 1.0
