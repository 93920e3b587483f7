"""Samples of a training: shares of the sets, rare classes, the same sample in any order."""

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pipeline.dataset import open_dataset
from pipeline.errors import UserError
from pipeline.labels import read_label
from pipeline.rare_classes import ClassIndex, index_classes
from pipeline.seeding import SeededSamples
from segtrain import checkpoints, loop, mixing, recipes, train, training_data
from segtrain.class_mixing import ClassMixing
from segtrain.sets import named_sets


def _train(config: train.Config) -> dict[str, torch.Tensor]:
    train.run(config, train.check(config))
    return load_file(config.output / checkpoints.WEIGHTS_FILE)


def test_a_sample_does_not_depend_on_order_or_global_state(source: Path, tiny_recipe: Path) -> None:
    recipe = recipes.load_recipe(tiny_recipe)
    dataset = recipes.build_dataset(recipe, source)
    samples = SeededSamples(mixing.MixedSamples({"source": dataset}), 3)
    first = [samples[i]["inputs"] for i in (0, 1, 2)]
    torch.manual_seed(1)
    again = [samples[i]["inputs"] for i in (2, 1, 0)][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])


def test_rare_classes_are_sampled_and_shown_more_often(
    source: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    """One label of the set gets a block of bicycle; the crops are half of the image or less."""
    folder = tmp_path / "source"
    shutil.copytree(source, folder)
    sample = open_dataset(folder, labelled=True)[1]
    label = read_label(sample.label)
    label[8:16, 8:16] = 18
    Image.fromarray(label).save(sample.label)
    recipe = recipes.load_recipe(tiny_recipe)
    sampling = mixing.RareClassCrops(temperature=0.005, min_pixels=40)
    samples = open_dataset(folder, labelled=True)
    # rows count the label as it was before
    uncounted = [dataclasses.replace(s, row={}) for s in samples]
    index = index_classes(uncounted, sampling)
    shown = {}
    for name, rare in (("uniform", {}), ("rare", {"source": index})):
        dataset = recipes.build_dataset(recipe, folder)
        draw = mixing.MixedSamples({"source": dataset}, rare=rare, min_crop_pixels=20)
        labels = [SeededSamples(draw, 3)[i]["data_samples"].gt_sem_seg.data for i in range(40)]
        shown[name] = sum(int((label == 18).sum() > 20) for label in labels)
    assert shown["rare"] > 2 * shown["uniform"] > 0
    again = SeededSamples(
        mixing.MixedSamples({"source": dataset}, rare=rare, min_crop_pixels=20), 3
    )[39]
    assert torch.equal(again["data_samples"].gt_sem_seg.data, labels[39])
    config = train.Config(
        recipe=tiny_recipe,
        source=folder,
        output=tmp_path / "run",
        steps=2,
        rare_classes=mixing.RareClassCrops(min_pixels=40),
    )
    assert _train(config)
    too_many = dataclasses.replace(
        config, output=tmp_path / "none", rare_classes=mixing.RareClassCrops(min_pixels=10**6)
    )
    with pytest.raises(UserError, match="lower min_pixels"):
        _train(too_many)
    with pytest.raises(UserError, match="temperature 0 must be above 0"):
        index_classes([], mixing.RareClassCrops(temperature=0))


class Growing:
    """A dataset of one image, whose n-th crop has 10 n pixels of class 0."""

    crops = 0

    def __len__(self) -> int:
        return 1

    def get_data_info(self, number: int) -> int:
        return number

    def pipeline(self, _: int) -> dict[str, SimpleNamespace]:
        self.crops += 1
        label = torch.full((1, 10, 20), 255)
        label.view(-1)[: 10 * self.crops] = 0
        shown = SimpleNamespace(data=label)
        return {"data_samples": SimpleNamespace(gt_sem_seg=shown, set_metainfo=lambda _: None)}


@pytest.mark.parametrize(("least", "shown"), [(0, 10), (20, 30), (80, 90), (1000, 100)])
def test_crops_are_sampled_until_one_shows_the_class(least: int, shown: int) -> None:
    rare = {"source": ClassIndex(np.eye(19)[0], [np.zeros(1, int)] * 19)}
    draw = mixing.MixedSamples({"source": Growing()}, rare=rare, min_crop_pixels=least)
    sample = draw(np.random.default_rng(0))
    assert int((sample["data_samples"].gt_sem_seg.data == 0).sum()) == shown


@pytest.mark.parametrize(("ratio", "least"), [({}, 20), ({"min_crop_ratio": 2.0}, 80)])
def test_the_crop_ratio_counts_in_pixels_of_a_file(
    ratio: dict[str, float], least: float, source: Path, tiny_recipe: Path
) -> None:
    """DAFormer takes half of min_pixels, HRDA twice as many."""
    recipe = recipes.load_recipe(tiny_recipe)
    data = training_data.open_training_data(named_sets(source, None, 0.0, ()), None)
    rare = mixing.RareClassCrops(min_pixels=40, **ratio)
    assert training_data.labelled_samples(recipe, data, rare, "it").min_crop_pixels == least


def test_a_share_is_the_probability_of_its_set() -> None:
    from mmseg.structures import SegDataSample

    class Fake:
        def __init__(self, name: str, size: int) -> None:
            self.name, self.size = name, size

        def __len__(self) -> int:
            return self.size

        def get_data_info(self, index: int) -> str:
            assert 0 <= index < self.size
            return self.name

        def pipeline(self, info: str) -> dict:
            return {"of": info, "data_samples": SegDataSample()}

    sizes = {"generated": 1000, "night": 1, "source": 3}
    shares = {"generated": 0.25, "night": 0.15, "source": 0.6}
    draw = mixing.MixedSamples({name: Fake(name, size) for name, size in sizes.items()}, shares)
    samples = [draw(np.random.default_rng(i)) for i in range(4000)]
    assert all(sample["data_samples"].set == sample["of"] for sample in samples)
    names = [sample["of"] for sample in samples]
    for name, share in shares.items():
        assert abs(names.count(name) / 4000 - share) < 0.03


def test_classes_are_pasted_from_other_sets_by_their_shares() -> None:
    """Each set has one class, which covers the sample it is pasted onto."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    class OneClass:
        def __init__(self, value: int) -> None:
            self.value = value

        def __len__(self) -> int:
            return 1

        def get_data_info(self, index: int) -> int:
            return index

        def pipeline(self, info: int) -> dict:
            sample = SegDataSample()
            sample.gt_sem_seg = PixelData(data=torch.full((1, 2, 2), self.value))
            return {"inputs": torch.zeros(3, 2, 2), "data_samples": sample}

    shares = {"generated": 0.6, "none": 0.0, "night": 0.1, "source": 0.3}
    names = list(shares)
    draw = mixing.MixedSamples(
        {name: OneClass(value) for value, name in enumerate(names)},
        shares,
        class_mixing=ClassMixing(1.0),
    )
    samples = [draw(np.random.default_rng(i))["data_samples"] for i in range(3000)]
    pasted = [names[int(sample.gt_sem_seg.data[0, 0, 0])] for sample in samples]
    assert pasted == [sample.pasted for sample in samples]
    onto_source = [name for name, s in zip(pasted, samples, strict=True) if s.set == "source"]
    assert abs(onto_source.count("generated") / len(onto_source) - 6 / 7) < 0.04
    assert onto_source.count("generated") + onto_source.count("night") == len(onto_source)
    task = loop.Segmentation(None, draw, None, sets=draw.names, mixes_classes=True)
    counts = task.count(([{"data_samples": sample} for sample in samples], []))
    assert counts["samples_source"] == len(onto_source)
    assert counts["pasted_none"] == 0 and counts["pasted_night"] == pasted.count("night")
    alone = mixing.MixedSamples({"source": OneClass(3)}, class_mixing=ClassMixing(1.0))
    assert alone(np.random.default_rng(0))["data_samples"].pasted == "source"


@pytest.mark.parametrize(
    ("share", "generated", "more", "rule"),
    [
        (0.5, None, (), "needs --generated"),
        (0.0, Path("x"), (), "--generated-share is 0"),
        (1.5, Path("x"), (), "within 0..1"),
        (float("nan"), Path("x"), (), "within 0..1"),
        (0.6, Path("x"), ("night=y:0.5",), "add up to 1 or less"),
        (0.0, None, ("source=y:0.5",), "name is taken"),
        (0.0, None, ("a=y:0.1", "a=z:0.1"), "name is taken"),
        (0.0, None, ("y:0.5",), "NAME=FOLDER:SHARE"),
        (0.0, None, ("a=y",), "NAME=FOLDER:SHARE"),
        (0.0, None, ("a=y:nan",), "NAME=FOLDER:SHARE"),
        (0.0, None, ("../a=y:0.5",), "NAME=FOLDER:SHARE"),
        (0.0, None, ("a=:0.5",), "NAME=FOLDER:SHARE"),
    ],
)
def test_shares_and_sets_must_agree(share, generated, more, rule: str) -> None:
    with pytest.raises(UserError, match=rule):
        named_sets(Path("s"), generated, share, more)


def test_the_source_takes_what_the_other_sets_leave() -> None:
    found = named_sets(Path("s"), Path("g"), 0.5, ("night=a:b/n:0.25",))
    assert [(one.name, str(one.folder), one.share) for one in found] == [
        ("generated", "g", 0.5),
        ("night", "a:b/n", 0.25),
        ("source", "s", 0.25),
    ]
