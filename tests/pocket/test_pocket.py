"""Pocket City: scenes, labels and looks keep their promises."""

from dataclasses import fields, replace
from itertools import combinations

import cv2
import numpy as np
import pytest

from pipeline.pocket.collection import GAME, LOOKS
from pipeline.pocket.look import PLACES, RANGE_FIELDS, caption, place_for
from pipeline.pocket.render import label_map, rasterize, render, render_pair
from pipeline.pocket.scene import make_scene
from pipeline.pocket.splits import SPLITS, scene_seed
from pipeline.pocket.targets import DEVELOPMENT_LOOKS, TARGET_LOOKS

ALL_LOOKS = [GAME, *LOOKS.values(), *TARGET_LOOKS.values(), *DEVELOPMENT_LOOKS.values()]
CLASS_IDS = {*range(19), 255}
WORDS = (
    "snowy",
    "rainy",
    "foggy",
    "night",
    "sunny",
    "overcast",
    "dusk",
    "dawn",
    "autumn",
    "dusty",
    "old photograph",
)


@pytest.fixture(scope="module")
def labels() -> list[np.ndarray]:
    return [label_map(make_scene(seed), 128, 256) for seed in range(300)]


def test_same_seed_gives_same_pair() -> None:
    first = render_pair(make_scene(7), LOOKS["snowy_night"], 128, 256, 3)
    second = render_pair(make_scene(7), LOOKS["snowy_night"], 128, 256, 3)
    other = render_pair(make_scene(7), LOOKS["snowy_night"], 128, 256, 4)
    assert np.array_equal(first[0], second[0]) and np.array_equal(first[1], second[1])
    assert not np.array_equal(first[0], other[0]) and np.array_equal(first[1], other[1])


@pytest.mark.parametrize("look", ALL_LOOKS, ids=lambda look: look.name)
def test_every_look_has_the_label_of_the_scene(look) -> None:
    scene = make_scene(11)
    image, label = render_pair(scene, look, 128, 256, 5)
    assert image.shape == (128, 256, 3) and image.dtype == np.uint8
    assert np.array_equal(label, label_map(scene, 128, 256))
    assert np.array_equal(image, render(scene, look, 128, 256, 5))
    assert image.std() > 4.0


@pytest.mark.parametrize("size", [(64, 128), (128, 256), (256, 512), (90, 170)])
def test_any_size(size: tuple[int, int]) -> None:
    for look in (GAME, LOOKS["rainy_night"], TARGET_LOOKS["bdd100k"]):
        image, label = render_pair(make_scene(2), look, *size, 1)
        assert image.shape == (*size, 3) and label.shape == size and label.dtype == np.uint8
        usual, classes = render_pair(make_scene(2), look, 128, 256, 1)
        coarse = [
            cv2.resize(i, (16, 8), interpolation=cv2.INTER_AREA).astype(float).ravel()
            for i in (image, usual)
        ]
        assert np.corrcoef(*coarse)[0, 1] > 0.95
        enlarged = cv2.resize(label, (256, 128), interpolation=cv2.INTER_NEAREST)
        assert np.mean(enlarged == classes) > 0.85


def test_a_street_without_sky() -> None:
    scene = make_scene(2)
    covered = replace(scene, rings=(scene.rings[0], scene.rings[0], *scene.rings[2:]))
    image, label = render_pair(covered, LOOKS["clear"], 128, 256, 1)
    usual, classes = render_pair(scene, LOOKS["clear"], 128, 256, 1)
    assert 10 in classes and 10 not in label
    # What was not sky keeps its class and nearly its colour; the sky becomes what covers it.
    kept = (classes != 10) & (classes == label)
    assert np.mean(kept[classes != 10]) > 0.5
    assert np.abs(image[kept].astype(int) - usual[kept]).mean() < 12
    assert len(np.unique(label[classes == 10])) == 1


def test_label_agrees_across_sizes() -> None:
    shares = []
    for seed in range(20):
        scene = make_scene(seed)
        small = label_map(scene, 64, 128)
        large = label_map(rasterize(scene, 128, 256))
        shares.append(
            np.mean([np.mean(small == large[a::2, b::2]) for a in (0, 1) for b in (0, 1)])
        )
    assert min(shares) > 0.9


def test_classes_and_their_long_tail(labels: list[np.ndarray]) -> None:
    ids, counts = np.unique(
        np.concatenate([np.unique(label) for label in labels]), return_counts=True
    )
    assert set(ids.tolist()) == CLASS_IDS
    share = dict(zip(ids.tolist(), (counts / len(labels)).tolist(), strict=True))
    assert min(share.values()) > 0.03
    for rare in (12, 14, 15, 16, 17):
        assert share[rare] < 0.16
    pixels = np.bincount(np.stack(labels).ravel(), minlength=256) / np.stack(labels).size
    assert pixels[[0, 2, 8, 10]].sum() > 0.6


def test_split_seeds_are_disjoint() -> None:
    spans = [(scene_seed(split, 0), scene_seed(split, 9_999_999)) for split in SPLITS]
    assert all(a[1] < b[0] for a, b in zip(spans, spans[1:], strict=False))
    # Published numbers rest on these scenes: a new split must not move the old ones.
    firsts = {split: scene_seed(split, 0) // 10_000_000 for split in SPLITS}
    assert firsts == {"source": 0, "collection": 1, "oracle": 2, "cityscapes": 3, "bdd100k": 4,
                      "mapillary": 5, "acdc": 6, "dark_zurich": 7, "dev": 8}  # fmt: skip
    with pytest.raises(ValueError, match="choose one of"):
        scene_seed("nowhere", 0)
    with pytest.raises(ValueError, match="must be in"):
        scene_seed("source", 10_000_000)


def test_captions_name_the_look() -> None:
    assert len(LOOKS) >= 12 and len(PLACES) >= 3
    phrases = [f"{look.weather_phrase} {look.time_phrase}" for look in [GAME, *LOOKS.values()]]
    assert len(set(phrases)) == len(phrases)
    assert all(any(word in phrase for phrase in phrases) for word in WORDS)
    classes = np.unique(label_map(make_scene(1), 128, 256)).tolist()
    for look in LOOKS.values():
        text = caption(classes, look, place_for(look, 9), seed=9)
        assert look.weather_phrase in text and look.time_phrase in text
        assert text == caption(classes, look, place_for(look, 9), seed=9)


def test_targets_differ_from_the_source() -> None:
    for look in [*TARGET_LOOKS.values(), *DEVELOPMENT_LOOKS.values()]:
        gaps = []
        for seed in range(5):
            scene = make_scene(seed)
            game = render(scene, GAME, 64, 128, seed).astype(np.float32)
            gaps.append(np.abs(render(scene, look, 64, 128, seed) - game).mean())
        assert np.mean(gaps) > 20.0, look.name


def test_the_development_set_is_none_of_the_others() -> None:
    """It mixes day, weather and night under a camera and a palette that no other set has."""
    others = [GAME, *LOOKS.values(), *TARGET_LOOKS.values()]
    assert {name.removeprefix("dev_") for name in DEVELOPMENT_LOOKS} == {
        "day",
        "fog",
        "night",
        "rain",
        "snow",
    }
    colors = ("sky_top", "sky_low", "fog_color", "tint")
    for look in DEVELOPMENT_LOOKS.values():
        for other in others:
            assert look.camera != other.camera and look.overrides != other.overrides
            assert not any(getattr(look, name) == getattr(other, name) for name in colors)
    # Cameras stand where no other camera stands: the heights and horizons of the source and of
    # three targets do not even overlap.
    camera = DEVELOPMENT_LOOKS["dev_day"].camera
    for other in (
        GAME,
        TARGET_LOOKS["cityscapes"],
        TARGET_LOOKS["bdd100k"],
        TARGET_LOOKS["dark_zurich"],
    ):
        assert other.camera.height_m[1] < camera.height_m[0]
    # And the images differ from those of any other look of the same scene.
    images = {
        look.name: [
            render(make_scene(seed), look, 64, 128, seed).astype(np.float32) for seed in range(3)
        ]
        for look in ALL_LOOKS
    }
    for name in DEVELOPMENT_LOOKS:
        for other in others:
            gap = np.mean(
                [
                    np.abs(a - b).mean()
                    for a, b in zip(images[name], images[other.name], strict=True)
                ]
            )
            assert gap > 6.0, (name, other.name)


def test_looks_differ_by_their_ranges() -> None:
    varied = [f.name for f in fields(GAME) if f.name in (*RANGE_FIELDS, "sky_top", "sky_low")]
    for one, other in combinations(ALL_LOOKS, 2):
        assert any(getattr(one, n) != getattr(other, n) for n in varied), (one.name, other.name)


def test_label_map_of_a_scene_needs_a_size() -> None:
    with pytest.raises(ValueError, match="give height and width"):
        label_map(make_scene(0))
