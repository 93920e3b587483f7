"""What export.py writes is loaded and run by mmsegmentation's own programs."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.dataset import open_dataset
from pipeline.errors import UserError
from pipeline.images import read_image
from pipeline.labels import CLASS_NAMES
from segtrain import export, import_network, score, train
from segtrain.checkpoints import WEIGHTS_FILE
from segtrain.segmenter import Segmenter

SWAPPED = [*CLASS_NAMES[:13], "truck", "car", *CLASS_NAMES[15:]]
UNDERSCORED = [name.replace(" ", "_").title() for name in CLASS_NAMES]


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tiny_recipe: Path, source: Path) -> tuple[Path, Path]:
    """The folder of a tiny SegFormer and of its export, at twice the size of its images."""
    folder = tmp_path_factory.mktemp("exported")
    recipe = folder / "recipe.py"
    recipe.write_text(
        f"_base_ = [{str(tiny_recipe)!r}]\ntest_resolution = 'high'\n"
        "test_pipeline = [dict(type='LoadImageFromFile'), "
        "dict(type='Resize', scale=(128, 64), keep_ratio=True), dict(type='LoadAnnotations'), "
        "dict(type='PackSegInputs')]\n"
    )
    config = train.Config(recipe=recipe, source=source, output=folder / "run", steps=2)
    train.run(config, train.check(config))
    out = export.Config(checkpoint=folder / "run", output=folder / "mmseg")
    export.check(out)
    export.run(out)
    with pytest.raises(UserError, match="config.py: exists already; choose another --output"):
        export.check(out)
    return folder / "run", folder / "mmseg"


def test_init_model_predicts_what_the_segmenter_does(exported, source: Path) -> None:
    from mmseg.apis import inference_model, init_model

    run, out = exported
    model = init_model(str(out / "config.py"), str(out / "model.pth"), device="cpu")
    assert len(model.dataset_meta["classes"]) == 19 and len(model.dataset_meta["palette"]) == 19
    segmenter = Segmenter.from_pretrained(run)
    for sample in open_dataset(source, labelled=True)[:2]:
        found = inference_model(model, str(sample.image)).pred_sem_seg.data[0].numpy()
        assert np.array_equal(found, segmenter(sample.image))
    assert torch.load(out / "model.pth", weights_only=True)["meta"]["dataset_meta"]
    assert "segtrain" not in (out / "config.py").read_text()


def test_inferencer_takes_config_and_checkpoint(exported, source: Path) -> None:
    from mmseg.apis import MMSegInferencer

    run, out = exported
    inferencer = MMSegInferencer(str(out / "config.py"), str(out / "model.pth"), device="cpu")
    sample = open_dataset(source, labelled=True)[0]
    found = inferencer(str(sample.image), return_datasamples=False, show=False)["predictions"]
    assert np.array_equal(found, Segmenter.from_pretrained(run)(read_image(sample.image)))


def test_runner_tests_to_the_score(exported, source: Path, tmp_path, monkeypatch) -> None:
    from mmengine.config import Config
    from mmengine.runner import Runner

    from pipeline import export as export_data

    monkeypatch.setattr("sys.argv", [
        "export.py", "--data", str(source), "--format", "mmseg", "--split", "val", "--output",
        str(tmp_path / "data"),
    ])  # fmt: skip
    export_data.main()
    run, out = exported
    config = Config.fromfile(out / "config.py")
    config.test_dataloader.dataset.data_root = str(tmp_path / "data")
    config.load_from, config.work_dir = str(out / "model.pth"), str(tmp_path / "work")
    found = Runner.from_cfg(config).test()
    ours = score.Config(checkpoint=(run,), targets=(source,), output=tmp_path / "s.json")
    score.run(ours, score.check(ours))
    wanted = json.loads(ours.output.read_text())["checkpoints"][0]["mean_miou"]
    assert found["mIoU"] == round(wanted, 2)


def test_parts_of_ours_are_imported_by_the_config() -> None:
    model = {"type": "EncoderDecoder", "decode_head": [{"type": "StreetforgeDAFormerHead"}]}
    config = export.stock_config({"model": model, "test_pipeline": []})
    assert config["custom_imports"]["imports"] == ["segtrain.registry"]


def test_what_was_exported_is_imported_and_predicts_alike(
    exported, source, tmp_path, capsys
) -> None:
    run, out = exported
    config = import_network.Config(out / "config.py", out / "model.pth", tmp_path / "imported")
    import_network.check(config)
    import_network.run(config)
    assert "tensors, test_resolution high; score it" in capsys.readouterr().out
    found, wanted = (
        json.loads((folder / "recipe.json").read_text())["recipe"]
        for folder in (config.output, run)
    )
    assert found["test_resolution"] == wanted["test_resolution"] == "high"
    image = read_image(open_dataset(source, labelled=True)[0].image)
    found = Segmenter.from_pretrained(tmp_path / "imported")(image)
    assert np.array_equal(found, Segmenter.from_pretrained(run)(image))
    scoring = score.Config(
        checkpoint=(tmp_path / "imported",), targets=(source,), output=tmp_path / "s.json", limit=1
    )
    score.run(scoring, score.check(scoring))
    (entry,) = json.loads(scoring.output.read_text())["checkpoints"]
    assert entry["kind"] == "mmsegmentation" and entry["selection"]["rule"] == "not recorded"


@pytest.mark.parametrize(
    "scale, resolution",
    [
        ("dict(type='Resize', scale=(2048, 1024), keep_ratio=True)", "high"),
        ("dict(type='ResizeShortestEdge', scale=1024, max_size=2048)", "high"),
        ("dict(type='Resize', scale=(1024, 512), keep_ratio=True)", "low"),
        ("dict(type='Resize', scale_factor=2.0, keep_ratio=True)", "low"),
        ("", "low"),
    ],
)
def test_the_resolution_of_a_stock_config_follows_from_its_scale(
    scale: str, resolution: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.py"
    path.write_text(
        "model = dict(data_preprocessor=dict(), decode_head=dict(num_classes=19))\n"
        f"test_pipeline = [dict(type='LoadImageFromFile'), {scale}]\n"
    )
    assert import_network.read_recipe(path)["test_resolution"] == resolution
    path.write_text(path.read_text() + "test_resolution = 'low'\n")
    assert import_network.read_recipe(path)["test_resolution"] == "low"


@pytest.mark.parametrize(
    "change, text",
    [
        (("num_classes=19", "num_classes=7"), "predicts 7 classes"),
        (("type='SegformerHead'", "type='MyHead'"), "MyHead.*not on the list of parts"),
        (("channels=16", "channels=8"), "does not fit the weights"),
        (("data_preprocessor=", "other="), "config.py: model has no data_preprocessor"),
    ],
)
def test_networks_that_cannot_be_imported_are_named(exported, change, text, tmp_path) -> None:
    _, out = exported
    path = tmp_path / "config.py"
    original = (out / "config.py").read_text()
    assert change[0] in original
    path.write_text(original.replace(*change))
    config = import_network.Config(path, out / "model.pth", tmp_path / "imported")
    with pytest.raises(UserError, match=text):
        import_network.run(config)
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    ("meta", "text"),
    [
        ({"dataset_meta": {"classes": SWAPPED}}, "class 13 is truck, expected car .2 differ"),
        ({"CLASSES": CLASS_NAMES[:18]}, "class 18 is nothing, expected bicycle .1 differ"),
        ({"dataset_meta": {"classes": [None, {}]}}, "class 0 is none, expected road .19 differ"),
    ],
)
def test_a_network_of_other_classes_is_not_imported(exported, meta, text, tmp_path: Path) -> None:
    _, out = exported
    checkpoint = torch.load(out / "model.pth", weights_only=True)
    torch.save({**checkpoint, "meta": meta}, tmp_path / "model.pth")
    weights = tmp_path / "model.pth"
    config = import_network.Config(out / "config.py", weights, tmp_path / "imported")
    with pytest.raises(UserError, match=f"model.pth: predicts other classes .*{text}"):
        import_network.run(config)
    assert not config.output.exists()


@pytest.mark.parametrize(
    "meta",
    [{}, {"CLASSES": None}, {"dataset_meta": {"classes": UNDERSCORED}}, {"dataset_meta": 1}],
)
def test_classes_are_compared_only_if_they_are_named(meta, tmp_path: Path) -> None:
    torch.save({"state_dict": {"x": torch.zeros(1)}, "meta": meta}, tmp_path / "model.pth")
    (tmp_path / "config.py").write_text("train_dataloader = dict(dataset=dict(type='A'))")
    import_network.require_class_order(tmp_path / "model.pth", tmp_path / "config.py")
    torch.save({"x": torch.zeros(1)}, tmp_path / "plain.pth")
    import_network.require_class_order(tmp_path / "plain.pth", tmp_path / "config.py")


def loaders(**names: Sequence[str]) -> str:
    """Return a config whose loaders name classes; that of the training wraps its dataset."""
    metas = {name: dict(metainfo=dict(classes=list(found))) for name, found in names.items()}
    if "train" in metas:
        metas["train"] = dict(type="Repeat", dataset=dict(datasets=[metas["train"]]))
    return "".join(f"{name}_dataloader = dict(dataset={meta})\n" for name, meta in metas.items())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_without_names_have_the_classes_of_the_config(suffix: str, tmp_path: Path) -> None:
    config, weights = tmp_path / "config.py", tmp_path / f"model{suffix}"
    save = save_file if suffix == ".safetensors" else torch.save
    save({"x": torch.zeros(1)}, weights)
    for wrong in (loaders(train=SWAPPED, test=CLASS_NAMES), loaders(test=SWAPPED)):
        config.write_text(wrong)
        with pytest.raises(UserError, match="config.py: predicts other .* class 13 is truck, exp"):
            import_network.require_class_order(weights, config)
    for right in (loaders(train=UNDERSCORED, val=SWAPPED), loaders(val=CLASS_NAMES), ""):
        config.write_text(right)
        import_network.require_class_order(weights, config)


def test_a_checkpoint_knows_its_classes_better_than_the_config(tmp_path: Path) -> None:
    config, weights = tmp_path / "config.py", tmp_path / "model.pth"
    config.write_text(loaders(train=SWAPPED))
    meta = {"dataset_meta": {"classes": CLASS_NAMES}}
    torch.save({"state_dict": {"x": torch.zeros(1)}, "meta": meta}, weights)
    import_network.require_class_order(weights, config)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_imported(exported, value, tmp_path: Path) -> None:
    weights = load_file(exported[0] / WEIGHTS_FILE)
    names = [name for name, tensor in weights.items() if tensor.is_floating_point()][:5]
    for name in names:
        weights[name].view(-1)[-1] = value
    save_file(weights, tmp_path / "model.safetensors")
    config = import_network.Config(
        exported[1] / "config.py", tmp_path / "model.safetensors", tmp_path / "imported"
    )
    with pytest.raises(UserError, match=f"{', '.join(names[:3])} and 2 more: not all .* finite"):
        import_network.run(config)
    assert not config.output.exists()


def test_three_mismatches_are_named(exported, tmp_path: Path) -> None:
    path = tmp_path / "config.py"
    path.write_text((exported[1] / "config.py").read_text().replace("channels=16", "channels=8"))
    config = import_network.Config(path, exported[1] / "model.pth", tmp_path / "imported")
    with pytest.raises(UserError, match=r"does not fit.*(: the recipe's.*){3}; \d+ more\)"):
        import_network.run(config)


@pytest.mark.parametrize("content", [b"", b"no safetensors"])
def test_damaged_weights_are_not_imported(exported, content: bytes, tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(content)
    config = import_network.Config(exported[1] / "config.py", weights, tmp_path / "imported")
    import_network.check(config)
    with pytest.raises(UserError, match="model.safetensors: is cut, empty or no safetensors file"):
        import_network.run(config)
    assert not config.output.exists()
