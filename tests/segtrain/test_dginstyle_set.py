"""The released DGInStyle set, on made files in its format: imported, filtered, trained on."""

import dataclasses
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pipeline import download, images, prepare
from pipeline.dataset import open_dataset
from pipeline.images import read_image
from pipeline.labels import read_label
from segtrain import recipes, sets, train

RECIPES = Path(__file__).resolve().parents[2] / "configs" / "segtrain"
STEMS = {"a_00001_genid0": "adverse", "n_00002_genid1": "night", "00003_genid0": "none"}
SIDE, BLOCK = 512, 32
VOID_OF_THE_SET = 19  # its generator writes the channel of void into the label


def draw(index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an image and a label of blocks of all classes and of the set's void."""
    rng = np.random.default_rng(index)
    cells = rng.integers(0, VOID_OF_THE_SET + 1, (SIDE // BLOCK, SIDE // BLOCK))
    label = cells.repeat(BLOCK, 0).repeat(BLOCK, 1).astype(np.uint8)
    return np.stack([label * 13, 255 - label * 12, label * 7], axis=-1), label


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset folder that download.py and prepare.py make of an archive like the released."""
    folder = tmp_path_factory.mktemp("dginstyle")
    with zipfile.ZipFile(folder / "drive.zip", "w") as archive:
        top = "DGInStyle_Datasets/half_adverse_half_normal"
        for index, stem in enumerate(STEMS):
            image, label = draw(index)
            archive.writestr(f"{top}/images/{stem}.png", images.encode_png(image))
            name = f"{top}/labels/{stem}_labelTrainIds.png"
            archive.writestr(name, images.encode_png(label))
    raw, output = folder / "raw", folder / "prepared"
    commands = (
        (download, ["--output", raw, "--archive", folder / "drive.zip"]),
        (prepare, ["--root", raw, "--output", output, "--workers", "1"]),
    )
    with pytest.MonkeyPatch.context() as patch:
        for program, flags in commands:
            argv = [program.__name__, "--dataset", "dginstyle", *map(str, flags)]
            patch.setattr(sys, "argv", argv)
            assert not program.main()
    return output


def test_void_is_corrected_and_conditions_come_from_the_names(imported: Path) -> None:
    samples = open_dataset(imported, labelled=True)
    assert len(samples) == len(STEMS)
    pairs = {stem: draw(index) for index, stem in enumerate(STEMS)}
    for sample in samples:
        stem = Path(sample.row["original_image"]).stem
        image, label = pairs[stem]
        assert sample.row["condition"] == STEMS[stem]
        assert np.array_equal(read_image(sample.image), image)
        found = read_label(sample.label)
        assert set(np.unique(found)) <= {*range(19), 255}
        assert np.array_equal(found, np.where(label == VOID_OF_THE_SET, 255, label))


@pytest.mark.parametrize("name", ["segformer_gta", "hrda_gta"])
def test_its_objects_have_the_size_of_the_sources(name: str, imported: Path) -> None:
    recipe = recipes.load_recipe(RECIPES / f"{name}.py")
    scales = {
        one: sets.declared_scale(sets.set_pipeline(recipe, one)) for one in ("source", "dginstyle")
    }
    assert scales["source"] == scales["dginstyle"]
    dataset = recipes.build_dataset(recipe, imported, "dginstyle")
    low, _ = scales["dginstyle"]
    sample = dataset.pipeline(dataset.get_data_info(0))
    height, width = sample["inputs"].shape[1:]
    crop = recipe.crop_size[0]
    assert height == width == min(round(SIDE * low), crop)
    label = sample["data_samples"].gt_sem_seg.data[0].numpy()
    row = label[height // 2]
    edges = np.flatnonzero(np.diff(row.astype(int)))
    assert np.all(np.abs(np.diff(edges) / (BLOCK * low) % 1 - 0.5) > 0.5 - 2 / (BLOCK * low))


def test_it_trains_beside_the_source(
    imported: Path, source: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        f"_base_ = [{str(tiny_recipe)!r}]\n"
        "sets = dict(source=dict(scale_factor=1.0), dginstyle=dict(scale_factor=0.125))\n"
    )
    config = train.Config(recipe=recipe, source=source, output=tmp_path / "run", steps=2)
    config = dataclasses.replace(config, sets=(f"dginstyle={imported}:0.5",))
    train.run(config, train.check(config))
    assert (tmp_path / "run" / "finished.json").exists()
