"""The engine: accumulation, processes, averages, counted sets, shown batches."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file

from pipeline import runs
from pipeline.errors import UserError
from pipeline.labels import colorize
from segtrain import checkpoints, loop, mixing, recipes, train
from segtrain.weight_average import WeightAverage

RECIPES = Path(__file__).resolve().parents[2] / "configs" / "segtrain"
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone")
INDEPENDENT_SAMPLES = """
_base_ = [{base!r}]
model = dict(
    backbone=dict(drop_path_rate=0.0),
    decode_head=dict(
        dropout_ratio=0.0, norm_cfg=dict(_delete_=True, type="GN", num_groups=4), channels=16
    ),
)
optim_wrapper = dict(_delete_=True, type="OptimWrapper", optimizer=dict(type="SGD", lr=0.5))
"""
"""No sample of a batch has an effect on another one's loss, and an update is linear in the loss."""


def weights_of(config: train.Config) -> dict[str, torch.Tensor]:
    train.run(config, train.check(config))
    return load_file(config.output / checkpoints.WEIGHTS_FILE)


def log_of(config: train.Config) -> list[dict]:
    return [json.loads(line) for line in (config.output / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def config(tiny_recipe: Path, make_dataset, tmp_path: Path) -> train.Config:
    """Two updates of four samples from two sets; three quarters of one's pixels are void."""
    recipe = tmp_path / "independent.py"
    recipe.write_text(INDEPENDENT_SAMPLES.format(base=str(tiny_recipe)))
    return train.Config(
        recipe=recipe,
        source=make_dataset(tmp_path / "source", 5, void_rows=24),
        generated=make_dataset(tmp_path / "generated", 4, seed=1, void_rows=0),
        generated_share=0.5,
        output=tmp_path / "run",
        steps=2,
        batch_size=4,
        log_interval=1,
    )


def test_equal_total_batches_train_alike(config, run_program, tmp_path: Path) -> None:
    """One process with a batch of four, with two micro-batches of two, and two processes."""
    expected = weights_of(config)
    accumulated = dataclasses.replace(
        config, output=tmp_path / "accumulated", batch_size=2, gradient_accumulation=2
    )
    found = {"accumulated": weights_of(accumulated)}
    output = tmp_path / "processes"
    run_program(
        *TORCHRUN, "segtrain/train.py", config.recipe, "--source", config.source,
        "--generated", config.generated, "--generated-share", 0.5, "--steps", 2,
        "--batch-size", 2, "--log-interval", 1, "--output", output,
        GLOO_SOCKET_IFNAME="lo", ACCELERATE_USE_CPU="1",
    )  # fmt: skip
    found["processes"] = load_file(output / checkpoints.WEIGHTS_FILE)
    for name, weights in found.items():
        for key in expected:
            torch.testing.assert_close(
                weights[key], expected[key], rtol=1e-4, atol=1e-6, msg=f"{name}: {key}"
            )
    lines = [log_of(dataclasses.replace(config, output=o)) for o in (config.output, output)]
    for one, other in zip(*lines, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["samples_source"] == other["samples_source"]  # summed over processes
        assert one["samples_source"] + one["samples_generated"] == 4


def test_the_average_is_saved_and_resume_is_exact(config, tmp_path: Path, monkeypatch) -> None:
    """Averages of the first updates are means, of initial weights, too."""
    config = dataclasses.replace(config, steps=3, checkpoint_interval=2, ema_decay=0.999)
    states, real = [], WeightAverage.follow

    def recording(self: WeightAverage) -> None:
        if not states:
            states.append({n: b.clone() for n, b in self.named_buffers() if n != "updates"})
        network = {n.replace(".", "/"): w.detach().clone() for n, w in self._trained()}
        states.append(network)
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(WeightAverage, "follow", recording)
        saved = weights_of(config)
    for name in states[0]:
        mean = torch.stack([state[name] for state in states]).mean(0)
        torch.testing.assert_close(saved[name.replace("/", ".")], mean)
    resumed, calls, loss = (
        dataclasses.replace(config, output=tmp_path / "r"),
        [],
        loop.training_loss,
    )

    def killed(*arguments: object) -> torch.Tensor:
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return loss(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "training_loss", killed)
        with pytest.raises(KeyboardInterrupt):
            weights_of(resumed)
    again = weights_of(resumed)
    assert all(torch.equal(again[name], saved[name]) for name in saved)


@pytest.fixture
def other_precision() -> Iterator[None]:
    """Let accelerate, whose precision is the same for a whole process, take another one."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def test_bf16_trains_weights_of_float32(config, other_precision) -> None:
    weights = weights_of(dataclasses.replace(config, precision="bf16", steps=2))
    assert {weight.dtype for weight in weights.values() if weight.is_floating_point()} == {
        torch.float32
    }


class Root(torch.nn.Module):
    """The square root of a weight, whose slope is infinite at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self) -> torch.Tensor:
        return self.weight.sqrt().sum()


class RootTask:
    """Two updates of a `Root`."""

    modules: ClassVar[dict[str, torch.nn.Module]] = {}

    def batches(self, first: int, rank: int, world: int) -> Iterator[list[int]]:
        yield from [[0], [0]]

    def count(self, batch: int) -> dict[str, int]:
        return {}

    def loss(self, model: torch.nn.Module, batch: int, step: int) -> torch.Tensor:
        return model()

    def after_update(self) -> None:
        raise AssertionError("an update was made")


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_gradients_that_are_not_finite_stop_before_the_update(clip_norm, tmp_path: Path) -> None:
    plan = loop.Plan(
        folder=tmp_path,
        steps=2,
        batch_size=1,
        seed=0,
        workers=0,
        checkpoint_interval=9,
        log_interval=9,
        clip_norm=clip_norm,
    )
    root = Root()
    optimizer = torch.optim.SGD(root.parameters(), lr=1.0)
    with pytest.raises(UserError, match="step 0: the gradient norm is inf; no update was made"):
        loop.train(runs.start_accelerator(), root, optimizer, RootTask(), plan)
    assert float(root.weight) == 0


def test_a_set_that_is_never_sampled_is_an_error(config) -> None:
    rare = dataclasses.replace(config, generated_share=1e-4)
    with pytest.raises(UserError, match="generated: none of the training's 8 samples .*--steps"):
        train.run(rare, train.check(rare))
    assert not list(rare.output.iterdir())
    samples = mixing.MixedSamples({"a": [], "b": [], "c": []}, {"a": 0.0, "b": 0.5, "c": 0.5})
    assert samples.never_sampled(0, 100) == {"a"}


def test_a_boundary_loss_without_its_sets_is_an_error(config) -> None:
    alone = dataclasses.replace(
        config, recipe=RECIPES / "flexseg_pocket.py", generated=None, generated_share=0.0
    )
    with pytest.raises(UserError, match=r"boundary.sets \('generated',\) names none .*\(source\)"):
        train.run(alone, train.check(alone))
    assert not alone.output.exists()
    for sets in (5, "generated", [5]):
        with pytest.raises(UserError, match="boundary.sets must be a list of names"):
            train.require_boundary_sets(alone, {"model": {"boundary": {"sets": sets}}}, None)
    for name in ("flexseg_gta", "flexseg_hrda_gta"):
        recipe = recipes.load_recipe(RECIPES / f"{name}.py")
        assert "dginstyle" in recipe.model.boundary.sets
        assert set(recipe.model.boundary.sets) <= set(recipe.sets)


def test_a_set_of_void_labels_is_an_error_before_anything_is_built(
    config, make_dataset, tmp_path: Path
) -> None:
    void = make_dataset(tmp_path / "void", 40, void_rows=32)
    for changes in ({"generated": void}, {"source": void}, {"sets": (f"more={void}:0.1",)}):
        with pytest.raises(UserError, match=f"{void}: .* all are void; prepare .*--label-space"):
            train.check(dataclasses.replace(config, **changes))


def test_a_limit_takes_the_first_generated_samples(config) -> None:
    from segtrain.training_data import labelled_samples

    limited = dataclasses.replace(config, generated_limit=2)
    data = train.check(limited)
    assert [len(data.samples[name]) for name in ("generated", "source")] == [2, 5]
    recipe = recipes.load_recipe(config.recipe)
    datasets = labelled_samples(recipe, data, config.rare_classes, "recipe").datasets
    assert len(datasets["generated"]) == 2
    files = [datasets["generated"].get_data_info(number)["img_path"] for number in range(2)]
    assert files == [str(sample.image) for sample in data.samples["generated"]]
    for options, remedy in (
        ({"generated_limit": 9}, "has 4 samples; generate more"),
        ({"generated": None, "generated_share": 0.0, "generated_limit": 2}, "needs --generated"),
    ):
        with pytest.raises(UserError, match=remedy):
            train.check(dataclasses.replace(config, **options))


def test_a_target_is_trained_on_only_if_it_is_named(config) -> None:
    path = config.generated / "run.json"
    document = json.loads(path.read_text())
    for split, allowed in (("val", False), ("train", True)):
        document["config"] |= {"dataset": "cityscapes", "split": split}
        path.write_text(json.dumps(document))
        if allowed:
            assert train.check(config)
            continue
        with pytest.raises(UserError, match="split val of cityscapes.*--train-on-target citysc"):
            train.check(config)
        assert train.check(dataclasses.replace(config, train_on_target=("cityscapes",)))
        with pytest.raises(UserError, match="--train-on-target citiscapes: is not in the catalog"):
            train.check(dataclasses.replace(config, train_on_target=("citiscapes",)))


def test_a_target_outside_the_catalogue_is_named_by_its_folder(config) -> None:
    path = config.generated / "run.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "role": "target"}))
    name = config.generated.name
    with pytest.raises(UserError, match=f"is a target that .*--train-on-target {name}$"):
        train.check(config)
    assert train.check(dataclasses.replace(config, train_on_target=(name,)))
    path.write_text(json.dumps({**document, "role": "development"}))
    assert train.check(config)


def test_another_class_list_is_an_error(config) -> None:
    path = config.source / "classes.json"
    document = json.loads(path.read_text())
    for names, told in (
        (["sky", *document["names"][1:]], "class 0 is sky, but the train id 0 is road"),
        (document["names"][:-1], "class 18 is none, but the train id 18 is bicycle"),
    ):
        path.write_text(json.dumps({**document, "names": names}))
        with pytest.raises(UserError, match=f"classes.json: {told}"):
            train.check(config)


def test_a_batch_of_unequal_images_is_named(config, tiny_recipe, tmp_path: Path) -> None:
    sheet = tmp_path / "batch.png"
    larger = "train_pipeline.3.crop_size=512"  # than the images, which keep their sizes then
    showing = dataclasses.replace(
        config, recipe=tiny_recipe, show_batch=sheet, cfg_options=(larger,)
    )
    with pytest.raises(UserError, match="tiny.*equal size.*correct the recipe's model or crop"):
        train.run(showing, train.check(showing))
    assert not sheet.exists() and not config.output.exists()


def test_an_image_of_another_size_is_named_in_any_step() -> None:
    from mmseg.models import SegDataPreProcessor
    from mmseg.structures import SegDataSample

    def sample(name: str, *size: int) -> dict:
        record = SegDataSample(metainfo={"img_path": name})
        return {"inputs": torch.zeros(3, *size), "data_samples": record}

    batch = [sample("a.png", 32, 64), sample("b.png", 32, 48)]
    network = torch.nn.Module()
    for size, divisor in (((16, 16), None), ((32, 56), None), ((32, 64), None), (None, 8)):
        network.data_preprocessor = SegDataPreProcessor(size=size, size_divisor=divisor)
        if size == (32, 64) or divisor:  # padded to one size
            loop.require_equal_sizes(batch, network.data_preprocessor)
            continue
        with pytest.raises(UserError, match=r"b.png: .*(48|56)x32 px, .* 64x32 px; .*a crop"):
            loop.training_loss(network, network, batch)
        teacher = SimpleNamespace(settings=SimpleNamespace(start=0))  # which would label them
        task = SimpleNamespace(network=network, teacher=teacher)
        with pytest.raises(UserError, match=r"b.png: .*(48|56)x32 px, .* 64x32 px; .*a crop"):
            loop.Segmentation.loss(task, network, ([], batch), 0)


def test_a_batch_is_shown_as_the_network_gets_it(config, tmp_path: Path, capsys) -> None:
    sheet = tmp_path / "batch.png"
    showing = dataclasses.replace(config, show_batch=sheet)
    train.run(showing, train.check(showing))
    assert not config.output.exists()
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 5 and all("generated" in line or "source" in line for line in told[1:])
    pixels = np.asarray(Image.open(sheet))
    assert pixels.shape == (4 * 32, 2 * 64, 3)
    from pipeline.seeding import SeededSamples

    recipe = recipes.load_recipe(config.recipe)
    recipe.train_dataloader.batch_size = 4
    labelled, _ = train.build_samples(config, recipe, train.check(config))
    for row in range(4):
        sample = SeededSamples(labelled, config.seed)[row]
        image = sample["inputs"].permute(1, 2, 0).numpy()[..., ::-1]
        label = sample["data_samples"].gt_sem_seg.data[0].numpy().astype(np.uint8)
        shown = pixels[row * 32 : (row + 1) * 32]
        assert np.abs(shown[:, :64].astype(int) - image).max() <= 1
        assert np.array_equal(shown[:, 64:], colorize(label))
    with pytest.raises(UserError, match="--show-batch"):
        train.check(showing)
