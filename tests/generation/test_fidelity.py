"""Counts of one image against maps worked out by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from generation.quality import fidelity, pixels, segmenters, sets
from pipeline import transformers_segmenter
from pipeline.errors import UserError
from pipeline.small_objects import small_objects

ROAD, CAR, POLE, VOID = 0, 13, 5, 255


def costs_for(predicted: list[list[int]], right: float = 0.1, wrong: float = 3.0) -> np.ndarray:
    """Costs 19xHxW of a network that is sure of `predicted`."""
    ids = np.array(predicted)
    costs = np.full((19, *ids.shape), wrong, np.float32)
    np.put_along_axis(costs, ids[None], right, 0)
    return costs


LABEL = np.array(
    [
        [ROAD, ROAD, CAR, CAR],
        [ROAD, ROAD, CAR, CAR],
        [ROAD, ROAD, ROAD, VOID],
    ],
    np.uint8,
)
PREDICTED = [
    [ROAD, CAR, CAR, CAR],
    [ROAD, ROAD, CAR, POLE],
    [ROAD, ROAD, ROAD, ROAD],
]


def test_counts_of_a_small_image() -> None:
    counts = fidelity.measure(costs_for(PREDICTED), LABEL, band_share=0.01, small_share=1.0)
    # road: 7 labelled, 6 right; car: 4 labelled, 3 right, 1 more predicted; one pole is wrong
    assert counts.areas[:, ROAD].tolist() == [6, 6, 7]
    assert counts.areas[:, CAR].tolist() == [3, 4, 4]
    assert counts.areas[:, POLE].tolist() == [0, 1, 0]
    assert counts.areas[2].sum() == 11, "void does not count"
    row = counts.to_row()
    assert row["miou"] == pytest.approx(100 * (6 / 7 + 3 / 5) / 2, abs=0.01)
    assert row["accuracy"] == pytest.approx(100 * 9 / 11, abs=0.01)
    assert counts.loss[ROAD] == pytest.approx(6 * 0.1 + 3.0)
    assert counts.loss[CAR] == pytest.approx(3 * 0.1 + 3.0)
    assert counts.objects[:, CAR].tolist() == [1, 1] and counts.objects[:, ROAD].tolist() == [1, 1]


def test_the_band_holds_the_pixels_beside_a_boundary() -> None:
    band = fidelity.boundary_band(LABEL, 1)
    expected = [
        [False, True, True, False],
        [False, True, True, True],
        [False, False, True, True],
    ]
    assert band.tolist() == expected
    line = np.array([[0] * 5 + [1] * 5], np.uint8)
    assert fidelity.boundary_band(line, 2)[0].tolist() == [False] * 3 + [True] * 4 + [False] * 3
    counts = fidelity.measure(costs_for(PREDICTED), LABEL, band_share=0.01, small_share=1.0)
    # in the band: road at (0,1) wrong, (1,1) and (2,2) right; car (0,2), (1,2) right, (1,3) wrong
    assert counts.band[:, ROAD].tolist() == [2, 2, 3]
    assert counts.band[:, CAR].tolist() == [2, 3, 3]


def test_an_object_is_small_by_its_area_and_found_by_half_of_it() -> None:
    label = np.zeros((12, 12), np.uint8)
    label[0:2, 0:3] = POLE  # 6 pixels, half of them seen
    label[0:2, 6:9] = POLE  # 6 pixels, two seen
    label[6:11, 0:6] = POLE  # 30 pixels: not small
    label[11, 11] = POLE  # a crumb
    predicted = np.zeros_like(label)
    predicted[0, 0:3] = POLE
    predicted[0, 6:8] = POLE
    assert small_objects(label, predicted, 10)[:, POLE].tolist() == [1, 2, 5, 12]


def test_rows_give_counts_back_and_counts_add_up() -> None:
    counts = fidelity.measure(costs_for(PREDICTED), LABEL, band_share=0.01, small_share=1.0)
    both = fidelity.total([fidelity.from_row(counts.to_row())] * 2)
    for name in ("areas", "band", "objects", "loss"):
        assert np.allclose(getattr(both, name), 2 * getattr(counts, name), atol=0.01)


def test_stored_costs_come_back(tmp_path) -> None:
    costs = costs_for(PREDICTED, right=0.125, wrong=2.5)
    path = tmp_path / "a.npz"
    path.write_bytes(segmenters.encode_costs(costs, 1))
    assert np.array_equal(segmenters.decode_costs(path, (3, 4)), costs)
    flat = np.full((19, 10, 14), 1.5, np.float32)
    for stride in (2, 3, 4):
        path.write_bytes(segmenters.encode_costs(flat, stride))
        assert np.array_equal(segmenters.decode_costs(path, (10, 14)), flat)


def test_foreign_classes_are_matched_by_name() -> None:
    costs = np.arange(3, dtype=np.float32)[:, None, None] * np.ones((3, 2, 2), np.float32)
    ordered = transformers_segmenter.by_train_id(costs, ["car", "unicorn", "road"])
    assert (ordered[13] == 0).all() and (ordered[0] == 2).all()
    assert (np.delete(ordered, [0, 13], 0) == transformers_segmenter.UNNAMED).all()


def test_light_contrast_and_sharpness() -> None:
    flat = np.full((8, 8, 3), 100, np.uint8)
    assert pixels.statistics(flat) == {"brightness": 100.0, "contrast": 0.0, "sharpness": 0.0}
    halves = flat.copy()
    halves[:, 4:] = 200
    found = pixels.statistics(halves)
    assert found["brightness"] == 150 and found["contrast"] == 50 and found["sharpness"] > 0


def test_near_duplicates_are_found_across_blocks(monkeypatch) -> None:
    monkeypatch.setattr(pixels, "BLOCK", 2)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(5)]
    images.append(np.clip(images[1].astype(int) + 1, 0, 255).astype(np.uint8))
    hashes = [pixels.difference_hash(image) for image in images]
    assert pixels.near_duplicates(hashes, 6) == [[1, 5]]
    assert pixels.near_duplicates(hashes, 256) == [[0, 1, 2, 3, 4, 5]]
    assert pixels.near_duplicates([], 6) == []


def test_near_duplicates_come_in_groups(monkeypatch) -> None:
    """Chains are joined, as an independent search over all pairs finds them."""
    monkeypatch.setattr(pixels, "BLOCK", 16)
    rng = np.random.default_rng(1)
    values = [int(rng.integers(2**62)) for _ in range(20)]
    for _ in range(60):  # copies of copies, each with one or two bits changed
        flipped = sum(1 << int(bit) for bit in rng.choice(62, int(rng.integers(0, 3)), False))
        values.append(values[int(rng.integers(len(values)))] ^ flipped)
    expected, left = [], set(range(len(values)))
    while left:
        group, waiting = set(), [left.pop()]
        while waiting:
            here = waiting.pop()
            group.add(here)
            near = {i for i in left if (values[i] ^ values[here]).bit_count() <= 2}
            left -= near
            waiting += near
        expected.append(sorted(group))
    hashes = [f"{value:064x}" for value in values]
    found = pixels.near_duplicates(hashes, 2)
    assert sorted(found) == sorted(group for group in expected if len(group) > 1)
    assert [len(group) for group in found] == sorted(map(len, found), reverse=True)


def test_thousands_of_equal_images_are_one_row() -> None:
    rows = [{"id": f"{i:08d}", "hash": "a" * 64} for i in range(20_000)]
    rows[7]["hash"] = "5" * 64
    found = sets.find_duplicates(rows, 6)
    assert (found["images"], found["groups"]) == (19_999, 1)
    assert found["largest"][0]["images"] == 19_999
    assert len(found["largest"][0]["ids"]) == sets.MOST_IDS


@pytest.mark.parametrize("key", ["auto_map", "quantization_config", "use_kernels"])
@pytest.mark.parametrize("kind", ["segmenter", "features"])
def test_a_folder_of_transformers_runs_no_code_of_its_own(key: str, kind: str, tmp_path) -> None:
    from generation.quality import features
    from pipeline.transformers_segmenter import TransformersSegmenter

    ran = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Evil: pass\n")
    value = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"} if key == "auto_map" else {"a": 1}
    config = {"model_type": "made_up", key: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    load = TransformersSegmenter.from_pretrained if kind == "segmenter" else features.load
    with pytest.raises(UserError, match=f"{key} asks for more than stock classes"):
        load(str(tmp_path), device="cpu")
    assert not ran.exists()


def test_a_folder_of_transformers_with_random_parts_is_refused(tmp_path: Path) -> None:
    from transformers import (
        SegformerConfig,
        SegformerForSemanticSegmentation,
        ViTConfig,
        ViTForImageClassification,
    )

    from generation.quality import features
    from pipeline.transformers_segmenter import TransformersSegmenter

    config = SegformerConfig(
        num_labels=1, id2label={0: "road"}, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 1, 1], decoder_hidden_size=8,
    )  # fmt: skip
    network = SegformerForSemanticSegmentation(config)
    network.half().save_pretrained(tmp_path / "half")
    image = np.zeros((32, 32, 3), np.uint8)
    found = TransformersSegmenter.from_pretrained(tmp_path / "half").costs([image])
    assert found[0].shape == (19, 32, 32)
    network.segformer.save_pretrained(tmp_path / "encoder")  # its head would be random
    with pytest.raises(UserError, match="decode_head.batch_norm.bias is missing; .* and 12 more"):
        TransformersSegmenter.from_pretrained(tmp_path / "encoder")
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    ViTForImageClassification(ViTConfig(**small)).save_pretrained(tmp_path / "vit")
    with pytest.raises(UserError, match="--features .*pooler.dense.bias is missing"):
        features.load(str(tmp_path / "vit"), "cpu")
