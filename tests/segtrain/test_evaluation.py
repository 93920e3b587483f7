"""Counts, rows, scores and intervals against naive definitions and against scipy."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats

from pipeline.errors import UserError
from pipeline.iou import areas_of, boundary_px
from pipeline.labels import VOID
from segtrain.evaluation import bootstrap, counts, parts, rows, summary, tables
from segtrain.protocol import Protocol

K = 19


def two_maps(seed: int = 0, shape: tuple[int, int] = (60, 90)) -> tuple[np.ndarray, np.ndarray]:
    """A label of blocks with void, and a prediction that is shifted and noisy."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, K, (shape[0] // 6, shape[1] // 6)).astype(np.uint8)
    label = np.kron(cells, np.ones((6, 6), np.uint8))
    predicted = np.roll(label, 2, axis=1)
    noise = rng.random(label.shape) < 0.02
    predicted = np.where(noise, rng.integers(0, K, label.shape), predicted).astype(np.uint8)
    label[:5, :20] = VOID
    return predicted, label


def boundary_by_erosion(mask: np.ndarray, width: int) -> np.ndarray:
    """The boundary of a mask as in Cheng et al.: what `width` erosions by 3x3 remove."""
    inner = scipy.ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=width, border_value=0)
    return mask & ~inner


def test_boundary_areas_are_those_of_eroded_masks() -> None:
    predicted, label = two_maps()
    width = boundary_px(*label.shape, counts.BOUNDARY_SHARE)
    assert width == round(0.02 * np.hypot(60, 90)) == 2
    ours = counts.boundary_areas(predicted, label, K)
    void = label == VOID
    for class_id in range(K):
        # Void is taken for the class itself here, so that it makes no boundary.
        on_truth = boundary_by_erosion((label == class_id) | void, width) & (label == class_id)
        same = ((predicted == class_id) & ~void) | void
        on_found = boundary_by_erosion(same, width) & (predicted == class_id) & ~void
        inside = ~scipy.ndimage.binary_dilation(void, np.ones((9, 9)))
        wanted = [(on_truth & on_found), on_found, on_truth]
        near = counts.near_boundary(label, width) & (label == class_id)
        assert np.array_equal(near & inside, on_truth & inside)
        assert ours[:, class_id].tolist() == [int(mask.sum()) for mask in wanted]


def test_a_boundary_begins_at_the_edge_of_the_image() -> None:
    inside = ~counts.near_boundary(np.full((9, 9), 4, np.uint8), 2)
    assert inside.sum() == 25 and inside[2:-2, 2:-2].all()


def test_confusion_counts_every_pixel_once() -> None:
    predicted, label = two_maps(1)
    predicted[30, :] = 200  # of no class
    found = counts.measure(predicted, label)
    wanted = np.zeros((K + 1, K + 1), np.int64)
    for truth, one in zip(label.ravel(), predicted.ravel(), strict=True):
        if truth != VOID:
            wanted[truth, min(one, K)] += 1
    assert np.array_equal(found.confusion, wanted)
    assert np.array_equal(found.areas, areas_of(predicted, label))


def test_calibration_is_the_mean_gap_of_the_bins() -> None:
    label = np.zeros((1, 4), np.uint8)
    label[0, 3] = VOID
    predicted = np.array([[0, 1, 0, 0]], np.uint8)
    confidence = np.array([[0.95, 0.55, 0.55, 0.1]], np.float32)
    found = summary.calibration_score(counts.measure(predicted, label, confidence))
    # bin of 0.55: accuracy 1/2; bin of 0.95: accuracy 1; void does not count
    assert found["ece"] == pytest.approx(100 * (2 / 3 * abs(0.5 - 0.55) + 1 / 3 * 0.05), abs=1e-4)
    assert sum(found["pixels"]) == 3
    assert summary.calibration_score(counts.measure(predicted, label)) is None


def test_small_objects_by_hand() -> None:
    label = np.zeros((100, 100), np.uint8)
    label[10:12, 10:15] = 5  # ten pixels, at most 0.1 % of the image
    label[50:80, 50:80] = 5  # not small
    predicted = np.zeros_like(label)
    predicted[10:12, 10:13] = 5  # six of ten
    predicted[50:80, 50:80] = 5
    predicted[0, 0:4] = 5  # false
    score = summary.counts_score(counts.measure(predicted, label), 1, Protocol().class_names)
    small = score["small_objects"]
    assert small["number"] == 1 and small["recall"] == 100.0
    assert small["iou"]["pole"] == pytest.approx(100 * 6 / 14)
    assert small["iou"]["road"] is None and small["miou"] == pytest.approx(100 * 6 / 14)


def sample_rows(number: int, network: str = "a", target: str = "t", seed: int = 0) -> list:
    """Rows of images of two conditions."""
    found = []
    for index in range(number):
        predicted, label = two_maps(seed + index, (18, 36))
        confidence = np.full(label.shape, 0.75, np.float32)
        count = counts.measure(predicted, label, confidence)
        condition = "fog" if index % 2 else ""
        digest = rows.label_digest(label)
        found.append(rows.Row(network, target, f"{index:08d}", condition, digest, count))
    return found


def test_rows_give_the_counts_back_in_the_order_of_one_process(tmp_path: Path) -> None:
    scores, made = tmp_path / "scores.json", sample_rows(5)
    keys = [f"{number:016x}" for number in range(5)]
    for index in range(2):
        with parts.Part(scores, index) as part:
            for key, row in zip(keys[index::2], made[index::2], strict=True):
                part.append(key, row)
    parts.merge(scores, keys)
    parts.remove_parts(scores)
    found = list(rows.read_rows(rows.rows_file(scores), {"t": K}))
    assert [row.id for row in found] == [row.id for row in made]
    for one, other in zip(found, made, strict=True):
        assert np.array_equal(one.counts.confusion, other.counts.confusion)
        assert np.array_equal(one.counts.boundary, other.counts.boundary)
        assert np.array_equal(one.counts.objects, other.counts.objects)
        assert np.allclose(one.counts.calibration, other.counts.calibration, atol=1e-3)
    assert [p.name for p in tmp_path.iterdir()] == ["scores.rows.jsonl"]


@pytest.mark.parametrize(
    "change",
    [
        {"id": 3}, {"target": "other"}, {"confusion": [[0, 20, 1]]}, {"confusion": [[0, 0, -1]]},
        {"confusion": "x"}, {"boundary": [[19, 1, 1, 1]]}, {"boundary": [[0, 1]]},
        {"objects": [[0, 1, 1, 1, float("nan")]]}, {"calibration": None},
        {"boundary": [[0, 1, 1, 1], [0, 1, 1, 1]]}, {"confusion": [[0, 0, 10**30]]},
    ],
    ids=str,
)  # fmt: skip
def test_broken_rows_are_named(change: dict, tmp_path: Path) -> None:
    row = {**sample_rows(1)[0].to_json(), **change}
    (tmp_path / "s.rows.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"s\.rows\.jsonl:1: broken row .*score\.py again"):
        list(rows.read_rows(tmp_path / "s.rows.jsonl", {"t": K}))


def test_scores_sum_pixels_over_images_and_conditions() -> None:
    made = sample_rows(6)
    (images,) = summary.collect(made)["a"].values()
    names = Protocol().class_names
    score = summary.target_score(images, names, bootstrap.resampled_mious(images.areas, "t"))
    total = sum((row.counts.areas for row in made), np.zeros((3, K), np.int64))
    iou = total[0] / (total[1] + total[2] - total[0])
    assert score["miou"] == pytest.approx(100 * iou.mean())
    assert score["interval"][0] < score["miou"] < score["interval"][1]
    assert {name: s["images"] for name, s in score["conditions"].items()} == {"none": 3, "fog": 3}


def test_intervals_are_those_of_scipy() -> None:
    made = sample_rows(40)
    areas = np.stack([row.counts.areas for row in made])
    ours = bootstrap.interval(bootstrap.resampled_mious(areas, "t", resamples=4000))

    def statistic(indices: np.ndarray) -> float:
        return float(bootstrap.mious(areas[indices].sum(0)[None])[0])

    wanted = scipy.stats.bootstrap(
        (np.arange(40),), statistic, n_resamples=4000, method="percentile", vectorized=False,
        rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    width = wanted.high - wanted.low
    assert ours == pytest.approx([wanted.low, wanted.high], abs=0.1 * width)


def test_the_draws_of_two_networks_are_of_the_same_images() -> None:
    one, other = (np.stack([r.counts.areas for r in sample_rows(9, seed=s)]) for s in (0, 50))
    again = bootstrap.resampled_mious(one, "t", resamples=300)
    assert np.array_equal(again, bootstrap.resampled_mious(one.copy(), "t", resamples=300))
    assert not np.array_equal(again, bootstrap.resampled_mious(one, "u", resamples=300))
    alone = bootstrap.resampled_mious(one, "t", resamples=300) - again
    assert (alone == 0).all() and bootstrap.p_value(alone) == 1.0
    better = bootstrap.resampled_mious(other, "t", resamples=300)
    assert 0 < bootstrap.p_value(again - better) <= 1
    assert bootstrap.p_value(np.full(999, 0.3)) == pytest.approx(2 / 1000)
    assert bootstrap.p_value(np.array([0.3, np.nan])) is None  # as its interval


def test_a_class_that_a_draw_lacks_is_left_out_of_its_mean() -> None:
    areas = np.zeros((2, 3, 2), np.int64)
    areas[0, :, 0] = 10
    areas[1, :, 1] = (5, 10, 10)
    values = bootstrap.mious(areas)
    assert values.tolist() == [100.0, pytest.approx(100 / 3)]
    assert np.isnan(bootstrap.mious(np.zeros((1, 3, 2)))).all()


def test_tables_keep_text_in_every_format() -> None:
    table = tables.Table("T", ["name", "a_b & c"], [["x|y", "-"], ["=1+1", "2.5 ± 0.1"]])
    assert r"x\|y" in table.markdown()
    latex = table.latex()
    assert r"a\_b \& c" in latex and r"2.5 $\pm$ 0.1" in latex and r"\textbar{}" in latex
    assert table.csv().splitlines() == ["name,a_b & c", "x|y,-", "'=1+1,2.5 ± 0.1"]
