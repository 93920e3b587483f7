"""Trained networks in use: the Python API, prediction of folders, images of features."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pipeline import label_spaces, labels
from pipeline.dataset import open_dataset
from pipeline.errors import UserError
from pipeline.images import read_image
from pipeline.reading import read_json
from segtrain import predict, score, visualise
from segtrain.checkpoints import WEIGHTS_FILE
from segtrain.segmenter import Segmenter


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with a PNG and a JPEG of different sizes."""
    rng = np.random.default_rng(0)
    for name, size in (("a/one.png", (37, 51)), ("two.jpg", (32, 64))):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(tmp_path / "in" / name)
    return tmp_path / "in"


def test_an_image_becomes_a_label_map_of_its_size(trained: Path, images: Path) -> None:
    segmenter = Segmenter.from_pretrained(trained)
    label = segmenter(images / "a/one.png")
    assert label.shape == (37, 51) and label.dtype == np.uint8
    assert label.max() < labels.NUM_CLASSES
    assert np.array_equal(label, segmenter(read_image(images / "a/one.png")))


def test_costs_are_lowest_where_the_label_map_says_so(trained: Path, images: Path) -> None:
    segmenter = Segmenter.from_pretrained(trained)
    image = read_image(images / "a/one.png")
    costs = segmenter.costs([image, image[::-1]])
    assert [c.shape for c in costs] == [(labels.NUM_CLASSES, 37, 51)] * 2
    assert np.allclose(np.exp(-costs[0]).sum(0), 1, atol=1e-5)
    assert (costs[0].argmin(0) == segmenter(image)).mean() > 0.999


def test_every_kind_is_written_and_what_is_there_stays(trained, images, tmp_path) -> None:
    config = predict.Config(
        checkpoint=trained,
        images=images,
        output=tmp_path / "out",
        kinds=("ids", "color", "overlay", "cityscapes"),
        opacity=0.25,
    )
    predict.run(config, predict.check(config))
    out = tmp_path / "out"
    label = labels.read_label(out / "ids/a/one.png")
    assert np.array_equal(label, Segmenter.from_pretrained(trained)(images / "a/one.png"))
    color = read_image(out / "color/a/one.png")
    assert np.array_equal(color, labels.colorize(label))
    mixed = read_image(images / "a/one.png") * 0.75 + color * 0.25
    assert np.abs(read_image(out / "overlay/a/one.png") - mixed).max() <= 0.5
    server = np.array(Image.open(out / "cityscapes/a/one_labelIds.png"))
    assert np.array_equal(label_spaces.label_space("cityscapes_ids")[server], label)
    assert len(list(out.rglob("*.png"))) == 8

    (out / "ids/two.png").unlink()
    times = {path: path.stat().st_mtime_ns for path in out.rglob("a/one.png")}
    predict.run(config, predict.check(config))
    assert (out / "ids/two.png").exists()
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


def test_predictions_score_as_the_network_that_made_them(trained, source, tmp_path) -> None:
    made = predict.Config(checkpoint=trained, images=source, output=tmp_path / "out")
    predict.run(made, predict.check(made))
    network = score.Config(checkpoint=(trained,), targets=(source,), output=tmp_path / "a.json")
    ids = tmp_path / "out/ids"
    folder = score.Config(predictions=ids, targets=(source,), output=tmp_path / "b.json")
    scores = []
    for config in (network, folder):
        score.run(config, score.check(config))
        scores.append(read_json(config.output)["checkpoints"][0]["targets"])
    assert scores[0] == scores[1]

    for changes, text in (
        ({"checkpoint": (trained,)}, "goes with one target, without --checkpoint"),
        ({"targets": (source, source)}, "goes with one target"),
        ({"predictions": tmp_path}, "no such prediction"),
    ):
        with pytest.raises(UserError, match=text):
            score.check(dataclasses.replace(folder, **changes))
    first = next(iter(score.check(folder).predicted.values()))
    Image.fromarray(np.zeros((3, 5), np.uint8)).save(first)
    with pytest.raises(UserError, match=r"its prediction \(3, 5\)"):
        score.run(folder, score.check(folder))


def test_another_run_is_refused_in_the_same_folder(trained, images, tmp_path) -> None:
    other = tmp_path / "other"
    shutil.copytree(trained, other)
    weights = load_file(other / WEIGHTS_FILE)
    save_file({name: value * 2 for name, value in weights.items()}, other / WEIGHTS_FILE)
    config = predict.Config(
        checkpoint=trained, images=images, output=tmp_path / "out", kinds=("ids",), limit=1
    )
    predict.run(config, predict.check(config))
    for changes, text in (
        ({"checkpoint": other}, r"weights: '\w+' -> '\w+'"),
        ({"opacity": 0.7}, "opacity: 0.5 -> 0.7"),
        ({"images": images / "a"}, "images"),
    ):
        changed = dataclasses.replace(config, **changes)
        with pytest.raises(UserError, match=f"holds another run .*{text}.*another --output"):
            predict.run(changed, predict.check(changed))
    more = dataclasses.replace(config, kinds=("ids", "color"), limit=None)
    predict.run(more, predict.check(more))
    assert len(list((tmp_path / "out").rglob("*.png"))) == 4


def test_images_outside_of_the_dataset_are_refused(trained, images, tmp_path) -> None:
    (tmp_path / "dataset").mkdir()
    for name in (str(images / "a/one.png"), "../in/two.jpg"):
        row = {"id": "first", "status": "ok", "image_file_name": name}
        (tmp_path / "dataset/metadata.jsonl").write_text(json.dumps(row) + "\n")
        config = predict.Config(
            checkpoint=trained, images=tmp_path / "dataset", output=tmp_path / "out"
        )
        with pytest.raises(UserError, match="unfit image_file_name"):
            predict.check(config)


def test_predictions_among_the_images_are_refused(trained, images) -> None:
    config = predict.Config(checkpoint=trained, images=images, output=images / "out")
    with pytest.raises(UserError, match="out: lies in --images"):
        predict.check(config)
    assert not (images / "out").exists()


def test_a_moved_base_model_is_named(trained, tiny_base, images, tmp_path) -> None:
    moved, run = tmp_path / "moved", tmp_path / "run"
    shutil.copytree(tiny_base, moved)
    shutil.copytree(trained, run)
    facts = (run / "recipe.json").read_text()
    (run / "recipe.json").write_text(facts.replace(str(tiny_base), str(tmp_path / "gone")))
    with pytest.raises(UserError, match="gone"):
        Segmenter.from_pretrained(run)
    image = images / "a/one.png"
    label = Segmenter.from_pretrained(run, base=str(moved))(image)
    assert np.array_equal(label, Segmenter.from_pretrained(trained)(image))
    config = predict.Config(
        checkpoint=run, images=images, output=tmp_path / "out", kinds=("ids",), base=str(moved)
    )
    predict.run(config, predict.check(config))
    assert np.array_equal(labels.read_label(tmp_path / "out/ids/a/one.png"), label)
    weights = tmp_path / "other" / "unet/diffusion_pytorch_model.safetensors"
    shutil.copytree(tiny_base, tmp_path / "other")
    save_file({name: value * 2 for name, value in load_file(weights).items()}, weights)
    with pytest.raises(UserError, match="trained on diffusion weights .*revision.*but found"):
        Segmenter.from_pretrained(run, base=str(tmp_path / "other"))
    with pytest.raises(UserError, match="neither 'pocket'"):
        predict.check(dataclasses.replace(config, base="nowhere"))


def test_cityscapes_label_ids() -> None:
    table = predict.label_ids()
    assert [table[i] for i in (0, 1, 10, 11, 18)] == [7, 8, 23, 24, 33] and table[255] == 0


def test_two_processes_predict_what_one_does(trained, source, tmp_path, run_program) -> None:
    names = {}
    for name, launch in (
        ("one", ()),
        ("two", ("-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone")),
    ):
        done = run_program(
            *launch, "segtrain/predict.py", "--checkpoint", trained, "--images", source,
            "--output", tmp_path / name, "--kinds", "ids", CUDA_VISIBLE_DEVICES="",
        )  # fmt: skip
        assert done.stdout.count("6 images") == 1  # one that believed itself alone would say so
        names[name] = {
            p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*.png")
        }
    assert names["one"] == names["two"] and len(names["one"]) == len(
        open_dataset(source, labelled=True)
    )


def test_bad_input_of_prediction(trained: Path, images: Path, tmp_path: Path) -> None:
    good = predict.Config(checkpoint=trained, images=images, output=tmp_path / "out")
    (images / "two.png").write_bytes((images / "a/one.png").read_bytes())
    (tmp_path / "before/overlay").mkdir(parents=True)
    for changes, text in (
        ({"checkpoint": tmp_path}, "no finished training"),
        ({"images": tmp_path / "none"}, "no such folder"),
        ({"output": tmp_path / "before"}, "choose another --output"),
        ({"scene": tmp_path}, "no learned scene"),
        ({"opacity": 1.5}, "--opacity"),
        ({"kinds": ()}, "--kinds"),
        ({"limit": 0}, "--limit"),
        ({}, "would overwrite .*two"),
    ):
        with pytest.raises(UserError, match=text):
            predict.check(dataclasses.replace(good, **changes))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no PNG"):
        predict.check(dataclasses.replace(good, images=tmp_path / "empty"))


def test_features_become_images(tiny_base: Path, source: Path, tmp_path: Path) -> None:
    maps = "up_blocks.1.attentions.0.transformer_blocks.0.attn2:maps"
    config = visualise.Config(
        base=str(tiny_base),
        images=source,
        output=tmp_path / "out",
        limit=2,
        taps=("up_blocks.1", maps),
        classes=("road", "car", "sky"),
        timesteps=(10, 200),
    )
    images = [read_image(path) for path in visualise.check(config)]
    found = visualise.extract(config, images)
    assert visualise.sheet(config, 0, images, found).shape == (2 * 32, 3 * 64, 3)
    assert visualise.sheet(config, 1, images, found).shape == (2 * 32, 7 * 64, 3)
    for changes, text in (
        ({"classes": ("dog",)}, "--classes dog"),
        ({"categories": "foo"}, "categories foo: expected none, eos, words"),
        ({"categories": "none"}, "--categories none: .* eos or words"),
    ):
        with pytest.raises(UserError, match=text):
            visualise.check(dataclasses.replace(config, **changes))
    visualise.check(dataclasses.replace(config, categories="none", taps=("up_blocks.1",)))


def test_features_are_computed_on_the_accelerator(tiny_base, source, monkeypatch) -> None:
    meta = torch.device("meta")  # stands for one: it refuses tensors of the CPU, and to come back
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: meta)
    config = visualise.Config(base=str(tiny_base), images=source, limit=1, taps=("up_blocks.1",))
    image = read_image(visualise.check(config)[0])
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        visualise.extract(config, [image])


def test_principal_components_find_the_directions_of_change() -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(3, 400)) * np.array([[9.0], [3.0], [1.0]])
    feature = (np.eye(5)[:, [2, 0, 4]] @ weights).reshape(5, 20, 20)
    (found,) = visualise.principal_components([feature])
    for component in range(3):
        values = found[..., component].ravel().astype(float)
        assert abs(np.corrcoef(values, weights[component])[0, 1]) > 0.97


def _end_line(config: predict.Config, capsys) -> str:
    predict.run(config, predict.check(config))
    return capsys.readouterr().out.strip().splitlines()[-1]


def test_a_replaced_image_is_predicted_again(trained, images, tmp_path, capsys) -> None:
    config = predict.Config(checkpoint=trained, images=images, output=tmp_path / "out")
    assert "skipped" not in _end_line(config, capsys)
    assert "2 were there already and were skipped" in _end_line(config, capsys)
    other = Image.fromarray(np.full((37, 51, 3), 200, np.uint8))
    other.save(tmp_path / "other.png")
    old = os.stat(images / "a/one.png").st_mtime - 1000
    os.utime(tmp_path / "other.png", (old, old))  # as a copy that keeps the time
    shutil.copy2(tmp_path / "other.png", images / "a/one.png")
    before = (tmp_path / "out/overlay/a/one.png").read_bytes()
    assert "1 were there already" in _end_line(config, capsys)
    assert (tmp_path / "out/overlay/a/one.png").read_bytes() != before
    link = tmp_path / "in/two.jpg"  # a link that leads elsewhere now
    moved = shutil.move(link, tmp_path / "two.jpg")
    link.symlink_to(moved)
    assert "1 were there already" in _end_line(config, capsys)


def test_predictions_of_another_set_are_not_scored(
    trained, make_dataset, tmp_path, monkeypatch
) -> None:
    sets = [make_dataset(tmp_path / f"set{seed}", 1, seed=seed) for seed in range(2)]
    config = predict.Config(checkpoint=trained, images=sets[0], output=tmp_path / "out")
    predict.run(config, predict.check(config))
    ids = tmp_path / "out/ids"
    score.check(score.Config(predictions=ids, targets=(sets[0],), output=tmp_path / "s.json"))
    with pytest.raises(UserError, match="predictions of .*set0, not of .*set1"):
        score.check(score.Config(predictions=ids, targets=(sets[1],), output=tmp_path / "s.json"))


def test_protocol_scales_images_and_the_prediction_returns_to_their_size(
    trained, make_dataset, tmp_path, monkeypatch
) -> None:
    target = make_dataset(tmp_path / "target", 1)
    run = read_json(target / "run.json")
    protocol = {"eval_low_px": [64, 128], "eval_high_px": [96, 192]}
    (target / "run.json").write_text(json.dumps({**run, "protocol": protocol}))
    segmenter = Segmenter.from_pretrained(trained)
    sizes, predict_logits = [], segmenter.model.predict

    def watch(inputs, samples):
        sizes.append(tuple(inputs.shape[-2:]))
        return predict_logits(inputs, samples)

    monkeypatch.setattr(segmenter.model, "predict", watch)
    monkeypatch.setattr(Segmenter, "from_pretrained", lambda *_, **__: segmenter)
    config = score.Config(checkpoint=(trained,), targets=(target,), output=tmp_path / "s.json")
    made = predict.Config(checkpoint=trained, images=target, output=tmp_path / "p", kinds=("ids",))
    score.run(config, score.check(config))
    predict.run(made, predict.check(made))
    monkeypatch.setitem(segmenter.recipe, "test_resolution", "high")
    score.run(config, score.check(config))
    other = dataclasses.replace(config, size_px=(64, 96))
    score.run(other, score.check(other))
    assert sizes == [(64, 128), (64, 128), (96, 192), (48, 96)]
    sample = open_dataset(target, labelled=True)[0]
    image = read_image(sample.image)
    found = labels.read_label(tmp_path / "p/ids" / sample.image.relative_to(target))
    # what mmsegmentation does, by hand: scale, normalise, network, scale the logits back
    preprocessor = segmenter.model.data_preprocessor
    scaled = cv2.resize(image, (128, 64), interpolation=cv2.INTER_LINEAR)
    inputs = torch.from_numpy(scaled).movedim(2, 0)[None].float()
    inputs = (inputs - preprocessor.mean[None]) / preprocessor.std[None]
    metas = [{"img_shape": (64, 128), "pad_shape": (64, 128), "ori_shape": (32, 64)}]
    with torch.no_grad():
        logits = segmenter.model.encode_decode(inputs, metas)
    logits = torch.nn.functional.interpolate(
        logits, (32, 64), mode="bilinear", align_corners=segmenter.model.align_corners
    )
    assert np.array_equal(found, logits.argmax(1)[0].numpy())
    for wrong in ({"eval_low_px": [0, 5]}, {"eval_low_px": "big"}, {"eval_low_px": [1e9, 1]}):
        (target / "run.json").write_text(json.dumps({**run, "protocol": wrong}))
        with pytest.raises(UserError, match="run.json: protocol.eval_low_px: is not a height"):
            score.check(config)


@pytest.mark.parametrize("size", [(1, 1), (12, 20), (3, 200), (200, 2)])
def test_tiny_images_are_predicted(trained: Path, size) -> None:
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    label = Segmenter.from_pretrained(trained)(image)
    assert label.shape == size and label.max() < labels.NUM_CLASSES


def test_too_large_images_are_named_before_weights_load(trained, tmp_path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("L", (5000, 3000)).save(tmp_path / "in/big.png")
    config = predict.Config(checkpoint=trained, images=tmp_path / "in", output=tmp_path / "out")
    with pytest.raises(UserError, match=r"big.png: reaches .* 5000x3000 .*test_cfg mode=slide"):
        predict.check(config)
    predict.check(dataclasses.replace(config, size_px=(512, 1024)))


def test_what_a_network_cannot_take_names_the_image(trained, monkeypatch) -> None:
    segmenter = Segmenter.from_pretrained(trained)
    for error, text in (
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "more memory than"),
        (torch.OutOfMemoryError("CUDA out of memory"), "more memory than"),
        (RuntimeError("Kernel size can't be greater\nthan"), "cannot take it .Kernel size"),
    ):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(segmenter.model, "predict", fail)
        with pytest.raises(UserError, match=f"street.png: .*{text}.*slide") as caught:
            segmenter(np.zeros((32, 32, 3), np.uint8), name="street.png")
        assert "\n" not in str(caught.value)
