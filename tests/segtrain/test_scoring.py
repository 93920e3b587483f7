"""Scores against confusions made by hand, mmsegmentation's metric and cityscapesscripts."""

import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import iou, label_spaces, labels, prepare
from pipeline.dataset import open_dataset
from pipeline.errors import UserError
from segtrain import predict, score
from segtrain.evaluation import score_tables, summary
from segtrain.mmcv_stand_in import install_stand_in
from segtrain.prediction_names import cityscapes_names, name_predictions
from segtrain.protocol import Protocol

SIZES = ((40, 72), (40, 72), (40, 72))


@pytest.fixture(autouse=True, scope="module")
def _mmseg() -> None:
    import segtrain.registry  # noqa: F401


def test_scores_equal_a_hand_made_confusion() -> None:
    label = np.array([[0, 0, 0, 0], [1, 1, 2, 255]], np.uint8)
    prediction = np.array([[0, 0, 0, 1], [1, 1, 5, 7]], np.uint8)
    found = iou.score_of(iou.areas_of(prediction, label), 1)
    assert found["iou"]["road"] == pytest.approx(100 * 3 / 4)
    assert found["iou"]["sidewalk"] == pytest.approx(100 * 2 / 3)
    assert found["iou"]["building"] == 0.0
    assert found["iou"]["pole"] == 0.0  # predicted, in no label
    assert found["iou"]["traffic sign"] is None  # predicted on void alone
    assert found["miou"] == pytest.approx((75 + 200 / 3) / 4) and found["num_classes"] == 4
    assert len(found["absent"]) == 15 and not {"building", "pole"} & set(found["absent"])


def test_a_class_that_is_only_predicted_counts_as_nought() -> None:
    label = np.zeros((1, 5), np.uint8)
    prediction = np.array([[0, 0, 0, 1, 2]], np.uint8)
    found = iou.score_of(iou.areas_of(prediction, label), 1)
    assert found["miou"] == pytest.approx(20.0) and found["num_classes"] == 3


def test_areas_sum_exactly_beyond_float32() -> None:
    areas = np.zeros((3, 19), dtype=np.int64)
    areas[:, 0] = 2**25
    areas[1:, 0] += 1  # float32 would lose this pixel
    assert iou.score_of(areas, 1)["iou"]["road"] < 100


@pytest.fixture(scope="module")
def cityscapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of three Cityscapes images with label ids; no label has a train or a fence."""
    root = tmp_path_factory.mktemp("cityscapes")
    rng = np.random.default_rng(3)
    ids = np.array([7, 8, 11, 12, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 32, 33, 0, 3, 29])
    for index, (city, (height, width)) in enumerate(
        zip(("aachen", "aachen", "ulm"), SIZES, strict=True)
    ):
        stem = f"{city}_{index:06d}_000019"
        blocks = rng.choice(ids, (height // 8, width // 8)).astype(np.uint8)
        label = np.kron(blocks, np.ones((8, 8), np.uint8))
        image = rng.integers(0, 255, (height, width, 3), np.uint8)
        for kind, suffix, array in (
            ("leftImg8bit", "leftImg8bit", image),
            ("gtFine", "gtFine_labelIds", label),
        ):
            path = root / kind / "val" / city / f"{stem}_{suffix}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
    return root


@pytest.fixture(scope="module")
def prepared(cityscapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree as a dataset folder."""
    folder = tmp_path_factory.mktemp("prepared") / "val"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [
            "prepare.py", "--dataset", "cityscapes", "--split", "val", "--root", str(cityscapes),
            "--output", str(folder), "--workers", "1",
        ])  # fmt: skip
        prepare.main()
    return folder


@pytest.fixture(scope="module")
def predicted(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Predictions of it, right in four fifths of the pixels, as train ids and as label ids."""
    folder = tmp_path_factory.mktemp("predicted")
    rng = np.random.default_rng(4)
    samples = open_dataset(prepared, labelled=True)
    named = name_predictions(prepared, [sample.image for sample in samples])
    others = cityscapes_names(prepared, named)
    for sample, name in zip(samples, named, strict=True):
        label = labels.read_label(sample.label)
        wrong = rng.integers(0, 19, label.shape).astype(np.uint8)
        found = np.where((rng.random(label.shape) < 0.8) & (label < 19), label, wrong)
        found[found == 18] = 16  # a train, which no label has
        found[found == 4] = 2  # a fence is in no label, and nowhere predicted
        for kind, file in (("ids", name), ("cityscapes", others[name])):
            path = folder / kind / file
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(predict.render(kind, found, label, 0.5)).save(path)
    return folder


@pytest.fixture(scope="module")
def ours(prepared: Path, predicted: Path) -> dict:
    """What score.py says of them."""
    config = score.Config(
        predictions=predicted / "ids", targets=(prepared,), output=predicted / "scores.json"
    )
    score.run(config, score.check(config))
    return json.loads(config.output.read_text())["checkpoints"][0]["targets"]["val"]


def test_scores_are_those_of_mmsegmentation(prepared, predicted, ours) -> None:
    from mmseg.evaluation import IoUMetric

    metric = IoUMetric(iou_metrics=["mIoU"])
    metric.dataset_meta = {"classes": labels.CLASS_NAMES}
    for sample in open_dataset(prepared, labelled=True):
        name = sample.image.relative_to(prepared).with_suffix(".png")
        pair = (predicted / "ids" / name, sample.label)
        found, truth = (torch.from_numpy(np.array(Image.open(path)))[None].long() for path in pair)
        data = {"pred_sem_seg": {"data": found}, "gt_sem_seg": {"data": truth}}
        metric.process({}, [data])
    areas = [sum(parts) for parts in zip(*metric.results, strict=True)]
    iou = IoUMetric.total_area_to_metrics(*areas, metrics=["mIoU"])["IoU"] * 100
    wanted = dict(zip(labels.CLASS_NAMES, iou.tolist(), strict=True))
    assert np.isnan(wanted.pop("fence")) and ours["iou"].pop("fence") is None
    assert ours["iou"] == pytest.approx(wanted, abs=1e-5)
    assert ours["iou"]["train"] == 0.0 and ours["num_classes"] == 18
    assert round(ours["miou"], 2) == metric.compute_metrics(metric.results)["mIoU"]


def test_scores_are_those_of_cityscapesscripts(cityscapes, predicted, ours, monkeypatch) -> None:
    if importlib.util.find_spec("cityscapesscripts") is None:
        pytest.skip("cityscapesscripts is not installed; it comes with the test extra")
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as stock

    monkeypatch.setenv("CITYSCAPES_RESULTS", str(predicted / "cityscapes"))
    for name, value in (
        ("evalInstLevelScore", False),
        ("JSONOutput", False),
        ("quiet", True),
        ("predictionPath", None),
        ("predictionWalk", None),
    ):
        monkeypatch.setattr(stock.args, name, value)
    truth = sorted(map(str, cityscapes.glob("gtFine/val/*/*_gtFine_labelIds.png")))
    found = [stock.getPrediction(stock.args, path) for path in truth]
    assert len(set(found)) == 3
    result = stock.evaluateImgLists(found, truth, stock.args)
    for name, value in ours["iou"].items():
        stock_value = 100 * result["classScores"][name]
        assert np.isnan(stock_value) if value is None else value == pytest.approx(stock_value)
    assert ours["miou"] == pytest.approx(100 * result["averageScoreClasses"], rel=1e-12)


def test_predictions_in_cityscapes_naming_score_alike(prepared, predicted, ours, tmp_path) -> None:
    moved = tmp_path / "somebodys/results"
    shutil.copytree(predicted / "cityscapes", moved / "val")
    config = score.Config(
        predictions=moved.parent, targets=(prepared,), output=tmp_path / "s.json", figures=True
    )
    score.run(config, score.check(config))
    entry = json.loads(config.output.read_text())["checkpoints"][0]
    found = entry["targets"]["val"]
    assert entry["kind"] == "predictions"
    assert all(found[key] == ours[key] for key in ("miou", "interval", "boundary"))
    figures = sorted(p.name for p in (tmp_path / "s.figures").iterdir())
    assert figures == ["somebodys_val_confusion.png", "somebodys_val_worst.png"]
    assert all(Image.open(tmp_path / "s.figures" / name).width > 400 for name in figures)

    wrong = dataclasses.replace(config, prediction_space="train_ids")
    with pytest.raises(UserError, match="_labelIds.png: .*outside its label space"):
        score.run(wrong, score.check(wrong))
    assert not list(tmp_path.glob("*.part*"))
    first = sorted((moved / "val").iterdir())[0]
    shutil.copy(first, first.with_name(first.name.replace("pred", "other")))
    with pytest.raises(UserError, match="is a second prediction of aachen_000000_000019"):
        score.check(config)
    for path in (moved / "val").glob("aachen*"):
        path.unlink()
    with pytest.raises(UserError, match="has no prediction of aachen_000000_000019"):
        score.check(config)


def test_label_ids_without_a_word_are_asked_for(prepared, predicted, tmp_path) -> None:
    for path in (predicted / "cityscapes").iterdir():
        shutil.copy(path, tmp_path / path.name.replace("_labelIds", ""))
    config = score.Config(predictions=tmp_path, targets=(prepared,), output=tmp_path / "s.json")
    with pytest.raises(UserError, match="not train ids; give --prediction-space cityscapes_ids"):
        score.run(config, score.check(config))


def test_predictions_of_a_released_set_go_by_ids_and_stay(tmp_path: Path) -> None:
    folder = tmp_path / "set" / "webdataset" / "train-000000.tar"
    folder.parent.mkdir(parents=True)
    folder.write_bytes(bytes(20))
    names = [f"webdataset/train-000000.tar/{start}-5/{start:08d}.png" for start in (0, 9)]
    rows = [{"id": name[-12:-4], "image_file_name": name} for name in names]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "set" / "metadata.jsonl").write_text(lines)
    images = [tmp_path / "set" / name for name in names]
    named = name_predictions(tmp_path / "set", images)
    assert [str(name) for name in named] == ["00000000.png", "00000009.png"]
    (tmp_path / "p.png").touch()
    assert predict.is_current(tmp_path / "p.png", images[0])


def test_a_set_of_fewer_classes_is_scored_in_its_own() -> None:
    classes = label_spaces.parse_merged(
        {"tree": [8, 9], "rider": [12, 17, 18], "road": [0]}, "test"
    )
    protocol = Protocol(classes=classes)
    label = np.array([[8, 8, 12, 12, 0, 0, 255]], np.uint8)
    prediction = np.array([[9, 8, 18, 10, 0, 13, 10]], np.uint8)
    areas = iou.areas_of(protocol.merge(prediction), protocol.merge(label), 3)
    found = iou.score_of(areas, 1, protocol.class_names)
    assert found["iou"] == {"tree": 100.0, "rider": 50.0, "road": 50.0}
    assert found["num_classes"] == 3


def test_mean_counts_each_target_once_and_skips_empty_ones() -> None:
    targets = {
        "a": {"miou": 10.0, "conditions": {"x": {"miou": 90.0}, "y": {"miou": 90.0}}},
        "b": {"miou": 30.0},
        "c": {"miou": None},
    }
    assert summary.mean_miou(targets) == 20.0


def test_table_shows_conditions_dashes_and_the_number_of_classes() -> None:
    one = {"miou": 50.0, "num_classes": 2, "iou": {"road": 100.0, "sky": 0.0, "train": None}}
    own = {"miou": None, "num_classes": 0, "iou": {"road": None, "tree": 7.0}}
    target = {**one, "conditions": {"fog": one}}
    scores = {
        "targets": ["acdc", "camvid"],
        "checkpoints": [
            {"name": "run", "targets": {"acdc": target, "camvid": own}, "mean_miou": 50.0}
        ],
    }
    lines = [line.replace(" ", "") for line in score_tables.score_tables(scores).splitlines()]
    assert lines[0] == "|mIoU%(classes)|acdc|acdc/fog|camvid|mean|"
    assert lines[2] == "|run|50.0(2)|50.0(2)|-(0)|50.0|"
    assert "|train|-|-|-|" in lines and "|tree|-|-|7.0|" in lines


def test_stand_in_operators_name_themselves() -> None:
    if not install_stand_in():
        pytest.skip("full mmcv is installed")
    import mmcv._ext

    with pytest.raises(Exception, match="nms.*install full mmcv"):
        mmcv._ext.nms()


def test_mmsegmentation_is_imported_after_this_package_in_any_order(run_program) -> None:
    run_program(
        "-W",
        "ignore",
        "-c",
        (
            "import segtrain\n"
            "from mmseg.apis import MMSegInferencer, init_model\n"
            "import mmcv._ext, segtrain.registry\n"
            "from mmengine.utils.dl_utils.misc import mmcv_full_available as full\n"
            "assert full() == (mmcv._ext.__spec__.loader is not None)\n"
        ),
    )


def test_frames_whose_rows_name_no_original_go_by_their_own_names(tmp_path: Path) -> None:
    name = "aachen_000000_000019_leftImg8bit.png"
    (tmp_path / name).touch()
    row = {"id": "a", "image_file_name": name, "original_image": None}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    named = {Path("a.png"): tmp_path / name}
    found = {Path("a.png"): Path("aachen_000000_000019_pred_labelIds.png")}
    assert cityscapes_names(tmp_path, named) == found
