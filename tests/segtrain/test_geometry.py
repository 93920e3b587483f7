"""Objects keep their shape and appear at the declared scale, in every set of every recipe.

Frames of every source size carry a grid of bright lines 16 px apart and a dark disc of 10 px in
each cell. The real training transforms run; period, shape and place are then measured on the
network's input and label.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.dataset import Compose

from pipeline.catalogue.specs import known_datasets, load_spec
from pipeline.dataset_writer import DatasetWriter
from pipeline.errors import UserError
from segtrain import protocol, recipes, sets
from segtrain.mixing import seeded_globals

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "configs" / "segtrain").glob("*.py"))
FRAMES = {  # width and height
    "gta": (1914, 1052),
    "cityscapes": (2048, 1024),
    "synthia": (1280, 760),
    "urbansyn": (2048, 1024),
    "generated": (512, 512),
    "whole_frame": (2048, 1024),
    "pocket": (256, 128),
    "upright": (720, 1280),
}
INDICES = [list(FRAMES.values()).index(size) for size in dict.fromkeys(FRAMES.values())]
PERIOD, LINE, DISC = 16, 2, 10  # px in the files
ROAD, POLE, CAR = 0, 5, 13
CATALOGUED = (  # targets, height and width of their frames, and of what low networks see
    ("cityscapes", (1024, 2048), (512, 1024)),
    ("bdd100k", (720, 1280), (512, 910)),
    ("acdc", (1080, 1920), (540, 960)),
    ("nighttime_driving", (1080, 1920), (540, 960)),
    ("camvid", (360, 480), (360, 480)),
)
CELL = np.full((PERIOD, PERIOD), ROAD, np.uint8)
CELL[:LINE] = CELL[:, :LINE] = POLE
OFFSET = np.arange(PERIOD) - (PERIOD + LINE - 1) / 2
CELL[np.hypot(OFFSET[:, None], OFFSET) < DISC / 2] = CAR
DISC_AREA = int((CELL == CAR).sum())
measured: dict[str, None] = {}  # transforms that were measured already


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder with one frame of each size, in the order of FRAMES."""
    folder = tmp_path_factory.mktemp("frames") / "data"
    writer = DatasetWriter(folder, config={})
    for index, (width, height) in enumerate(FRAMES.values()):
        tiles = np.tile(CELL, (height // PERIOD + 1, width // PERIOD + 1))
        label = np.ascontiguousarray(tiles[:height, :width])
        grey = np.array([128, 255, 0], np.uint8)[np.searchsorted([ROAD, POLE, CAR], label)]
        writer.write(index, np.repeat(grey[..., None], 3, -1), label, {})
    return folder


def grey_of(sample: dict[str, Any]) -> np.ndarray:
    """Brightness about the road's, -1 for discs and 1 for lines, whatever the distortion."""
    grey = sample["inputs"].numpy().astype(float).mean(0)
    label = sample["data_samples"].gt_sem_seg.data.numpy()[0]
    dark, road, bright = (np.median(grey[label == k]) for k in (CAR, ROAD, POLE))
    return np.where(grey > road, (grey - road) / (bright - road), (grey - road) / (road - dark))


def centres(profile: np.ndarray) -> np.ndarray:
    """Centres of gravity of the lines in a profile; those cut by the border are left out."""
    at = np.flatnonzero(profile > 0.3)
    runs = [run for run in np.split(at, np.flatnonzero(np.diff(at) > 1) + 1) if len(run)]
    found = []
    for run in runs:
        first, last = run[0] - 1, run[-1] + 1
        if first >= 0 and last < len(profile):
            weights = profile[first : last + 1].clip(0)
            found.append((weights * np.arange(first, last + 1)).sum() / weights.sum())
    return np.array(found)


def period(lines: np.ndarray) -> float:
    """Distance of neighbouring lines, by least squares."""
    assert len(lines) >= 3, lines
    return float(np.polyfit(np.arange(len(lines)), lines, 1)[0])


def discs(values: np.ndarray, columns: np.ndarray, rows: np.ndarray) -> tuple[float, float]:
    """Ratio of width to height, and mean diameter, of the discs between the lines."""
    spreads, areas = [], []
    columns, rows = columns[:12], rows[:12]
    for top, bottom in zip(rows, rows[1:], strict=False):
        for left, right in zip(columns, columns[1:], strict=False):
            inside = slice(int(top) + 1, int(bottom) + 1), slice(int(left) + 1, int(right) + 1)
            cell = -values[inside].clip(-1, 0)
            y, x = np.mgrid[: cell.shape[0], : cell.shape[1]]
            mass = cell.sum()
            moments = [(cell * (a - (cell * a).sum() / mass) ** 2).sum() / mass for a in (x, y)]
            spreads.append(moments)
            areas.append(mass)
    width, height = np.mean(spreads, 0)
    return float(np.sqrt(width / height)), float(2 * np.sqrt(np.mean(areas) / np.pi))


def check_sample(sample: dict[str, Any], low: float, high: float) -> None:
    """Aspect within 2 %, scale within 5 % of low..high, label and image on the same pixels."""
    values = grey_of(sample)
    label = sample["data_samples"].gt_sem_seg.data.numpy()[0]
    assert values.shape == label.shape
    columns, rows = centres(np.median(values, 0)), centres(np.median(values, 1))
    across, down = period(columns) / PERIOD, period(rows) / PERIOD
    assert across / down == pytest.approx(1, abs=0.02)
    assert 0.95 * low <= min(across, down) and max(across, down) <= 1.05 * high
    ratio, diameter = discs(values, columns, rows)
    assert ratio == pytest.approx(1, abs=0.02)
    assert diameter == pytest.approx(np.sqrt(DISC_AREA * 4 / np.pi) * across, rel=0.05)
    lines = (label == POLE).astype(float)
    for axis, found in ((0, columns), (1, rows)):
        in_label = centres(np.median(lines, axis))
        apart = np.array(
            [in_label[np.abs(in_label - line).argmin()] - line for line in found[1:-1]]
        )
        assert np.abs(apart).max() < 0.6  # half a pixel is the most that whole pixels can be off
    inner = np.ones_like(label, bool)  # not within a pixel of another class
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            inner &= np.roll(label, (dy, dx), (0, 1)) == label
    inner[[0, -1]] = inner[:, [0, -1]] = False
    assert (values[inner & (label == CAR)] < -0.5).all()
    assert (np.abs(values[inner & (label == ROAD)]) < 0.5).all()


def test_all_shipped_recipes_are_here() -> None:
    assert len(RECIPES) >= 25


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_training_keeps_shape_scale_and_alignment(path: Path, frames: Path) -> None:
    recipe = recipes.load_recipe(path)
    assert {"source", "generated", "target"} <= set(recipe.sets)
    for name, options in recipe.sets.items():
        declared = options.get("scale_factor")
        low, high = declared if isinstance(declared, list | tuple) else (declared, declared)
        assert sets.declared_scale(sets.set_pipeline(recipe, name)) == (low, high)
        key = json.dumps(sets.set_pipeline(recipe, name))
        if key in measured:
            continue
        dataset = recipes.build_dataset(recipe, frames, name)
        for index in INDICES:
            for seed in range(1 if low == high else 3):
                with seeded_globals(seed):
                    sample = dataset.pipeline(dataset.get_data_info(index))
                check_sample(sample, low, high)
                factors = sample["data_samples"].metainfo["scale_factor"]
                assert 0.95 * low <= min(factors) and max(factors) <= 1.05 * high
        measured[key] = None


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_runner_trains_on_the_source_as_our_program_does(path: Path) -> None:
    recipe = recipes.load_recipe(path)
    stock = dict(recipe.train_dataloader.dataset)
    from segtrain.transforms import prepare

    runner = prepare(stock["pipeline"], stock.get("scale_factor"))
    assert runner == sets.set_pipeline(recipe, "source")
    for name in ("val", "test"):  # Runner.test() needs all three, as validation does
        assert {f"{name}_dataloader", f"{name}_evaluator", f"{name}_cfg"} <= set(recipe)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_scoring_keeps_shapes_and_labels(path: Path, frames: Path) -> None:
    import segtrain.registry  # noqa: F401

    recipe = recipes.load_recipe(path)
    key = json.dumps(recipe.test_pipeline)
    for loader in ("val_dataloader", "test_dataloader"):
        assert json.dumps(recipe[loader].dataset.pipeline) == key
    if key in measured:
        return
    dataset = recipes.build_dataset({"train_pipeline": recipe.test_pipeline}, frames)
    for index, (width, height) in enumerate(FRAMES.values()):
        sample = dataset.pipeline(dataset.get_data_info(index))
        rows, columns = sample["inputs"].shape[1:]
        assert columns / width == pytest.approx(rows / height, rel=0.02)
        assert sample["data_samples"].gt_sem_seg.shape == (height, width)
    measured[key] = None


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_high_resolution_networks_see_every_target_twice_as_large(path: Path) -> None:
    """As in training: their declared scale of the source is twice that of the other networks."""
    recipe = recipes.as_json(recipes.load_recipe(path))
    is_hrda, is_pocket = "hrda" in path.stem, path.stem.endswith("_pocket")
    factor = 2 if is_hrda else 1
    assert recipe.get("test_resolution", "low") == ("high" if is_hrda else "low")
    for name, native, low in CATALOGUED:
        spec = load_spec(name)
        sizes = protocol.Protocol(spec.eval_low_px, spec.eval_high_px).size_px(recipe)
        found = protocol.tested_size(*native, recipe, sizes)
        assert found == (factor * low[0], factor * low[1]), name
    if is_pocket:  # its targets have no entry in the catalogue
        found = protocol.tested_size(128, 256, recipe, None)
        assert found == (factor * 128, factor * 256)
        assert recipe["sets"]["source"]["scale_factor"][0] == 0.75 * factor


def test_every_target_of_the_catalogue_has_a_scale() -> None:
    specs = [load_spec(name) for name in known_datasets()]
    targets = [spec for spec in specs if spec.role == "target"]
    assert len(targets) >= 8
    assert all(spec.eval_low_px and spec.eval_high_px for spec in targets)


def test_the_reference_sizes_are_met() -> None:
    recipe = recipes.load_recipe(ROOT / "configs" / "segtrain" / "segformer_gta.py")
    found = {}
    for name, (width, height) in (("source", FRAMES["gta"]), ("generated", (512, 512))):
        (resize,) = [s for s in sets.set_pipeline(recipe, name) if "Resize" in s["type"]]
        image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        result = Compose([resize])({"img": image, "seg_fields": []})
        found[name] = result["img"].shape[1::-1]
        if name == "generated":
            assert np.array_equal(result["img"], image)
    assert found == {"source": (1280, 704), "generated": (512, 512)}


@pytest.mark.parametrize(
    ("step", "rule"),
    [
        ({"type": "Resize", "scale": (1280, 720)}, "keep_ratio=True"),
        ({"type": "Resize", "scale_factor": (0.5, 0.6)}, "stretches objects"),
        ({"type": "RandomResize", "scale": (64, 32), "ratio_range": (1, 2)}, "keep_ratio=True"),
        ({"type": "RandomChoiceResize", "scales": [(64, 32)], "keep_ratio": False}, "keep_ratio"),
        ({"type": "RandomApply", "transforms": [{"type": "Resize", "scale": (9, 9)}]}, "keep_r"),
        ({"type": "StreetforgeResize", "scale_factor": 0}, "must be a number in"),
        ({"type": "StreetforgeResize", "scale_factor": float("nan")}, "must be a number in"),
        ({"type": "StreetforgeResize", "scale_factor": (2.0, 1.0)}, "must be a number in"),
        ({"type": "StreetforgeResize", "scale_factor": "0.5"}, "must be a number in"),
        ({"type": "StreetforgeResize", "scale_factor": True}, "must be a number in"),
        ({"type": "StreetforgeResize", "scale_factor": 1e9}, "must be a number in"),
    ],
)
def test_a_pipeline_that_deforms_is_refused(step: dict[str, Any], rule: str) -> None:
    steps = [{"type": "LoadImageFromFile"}, step, {"type": "PackSegInputs"}]
    with pytest.raises(UserError, match=rule):
        sets.set_pipeline({"train_pipeline": steps}, "source")


def test_a_set_without_a_declared_scale_is_refused() -> None:
    steps = [{"type": "LoadImageFromFile"}, {"type": "PackSegInputs"}]
    recipe = {"train_pipeline": steps, "sets": {"source": {}}}
    assert sets.declared_scale(sets.set_pipeline(recipe, "source")) == (1.0, 1.0)
    for changed, name, rule in (
        (recipe, "generated", "sets has no generated"),
        ({"train_pipeline": steps}, "generated", "sets has no generated"),
        ({**recipe, "sets": {"source": {"scale": 1}}}, "source", "unknown key 'scale'"),
        ({**recipe, "sets": {"source": {"scale_factor": 2.0}}}, "source", "exactly one Streetf"),
        ({**recipe, "sets": {"source": 3}}, "source", "sets has no source"),
    ):
        with pytest.raises(UserError, match=rule):
            sets.set_pipeline(changed, name)


def test_a_set_may_have_transforms_of_its_own() -> None:
    own = [{"type": "LoadImageFromFile"}, {"type": "StreetforgeResize"}, {"type": "PackSegInputs"}]
    recipe = {
        "train_pipeline": [{"type": "LoadImageFromFile"}],
        "sets": {"source": {}, "night": {"pipeline": own, "scale_factor": (0.5, 2.0)}},
    }
    kinds = [step["type"] for step in sets.set_pipeline(recipe, "night")]
    assert kinds == ["LoadImageFromFile", "StreetforgeResize", "PackSegInputs"]
    assert sets.declared_scale(sets.set_pipeline(recipe, "night")) == (0.5, 2.0)
