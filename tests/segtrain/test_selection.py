"""Networks of several kinds are scored, and chosen on a set that is no target unless allowed."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from pipeline.errors import UserError
from pipeline.labels import CLASS_NAMES
from segtrain import score
from segtrain.checkpoints import WEIGHTS_FILE


@pytest.fixture(scope="module")
def networks(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A trained network, and one whose last layer says one class everywhere."""
    other = tmp_path_factory.mktemp("networks") / "spoilt"
    shutil.copytree(trained, other)
    weights = load_file(other / WEIGHTS_FILE)
    bias = next(name for name in weights if name.endswith("conv_seg.bias"))
    weights[bias][16] += 1e4
    save_file(weights, other / WEIGHTS_FILE)
    return other, trained


@pytest.fixture(scope="module")
def target(make_dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("target") / "acdc", 3, seed=5)


def test_the_best_on_the_development_set_is_scored(
    networks, source: Path, target: Path, tmp_path: Path, capsys
) -> None:
    config = score.Config(
        checkpoint=networks, targets=(target,), select_on=source, output=tmp_path / "s.json"
    )
    score.run(config, score.check(config))
    (entry,) = json.loads(config.output.read_text())["checkpoints"]
    chosen = entry["selection"]
    assert entry["checkpoint"] == str(networks[1]) and entry["seed"] == 0
    assert chosen["rule"] == "best" and chosen["on"] == "source" and not chosen["is_target"]
    assert max(chosen["candidates"], key=chosen["candidates"].get) == entry["name"]
    assert 0 < entry["calibration"]["acdc"]["ece"] <= 100
    text = capsys.readouterr().out
    assert "best of 2 on source" in text and "target-blind" not in text
    rows = (tmp_path / "s.rows.jsonl").read_text().splitlines()
    assert [json.loads(row)["target"] for row in rows] == ["acdc"] * 3


def test_a_target_chooses_only_if_allowed_and_is_marked(
    networks, target: Path, tmp_path: Path, capsys
) -> None:
    copied = tmp_path / "renamed"
    shutil.copytree(target, copied)
    config = score.Config(
        checkpoint=networks, targets=(target,), select_on=copied, output=tmp_path / "s.json"
    )
    with pytest.raises(UserError, match="holds images of the target acdc.*--select-on-target"):
        score.check(config)
    allowed = dataclasses.replace(config, select_on_target=True)
    score.run(allowed, score.check(allowed))
    assert "**Not target-blind**" in capsys.readouterr().out
    assert "**Not target-blind**" in (tmp_path / "s.md").read_text()


def test_a_dataset_of_the_catalogue_that_is_a_target_is_refused(
    networks, source: Path, target: Path, tmp_path: Path
) -> None:
    other = tmp_path / "night"
    shutil.copytree(source, other)
    run = json.loads((other / "run.json").read_text())
    run["config"] = {"dataset": "dark_zurich", "split": "val"}
    (other / "run.json").write_text(json.dumps(run))
    config = score.Config(checkpoint=networks, targets=(target,), select_on=other)
    with pytest.raises(UserError, match="is a target's dataset"):
        score.check(config)
    (other / "run.json").write_text(json.dumps({**run, "config": {}, "role": "target"}))
    with pytest.raises(UserError, match="is a target's dataset"):  # as Pocket City writes it
        score.check(config)


def test_settings_of_the_selection_are_checked(networks, source: Path, target: Path) -> None:
    for changes, text in (
        ({"checkpoint": networks[:1], "select_on": source}, "two or more by --checkpoint"),
        ({"select_on_target": True}, "without --select-on"),
        ({"prediction_space": "gta"}, "--prediction-space: goes with --predictions"),
        ({"worst": 0}, "--worst 0"),
    ):
        with pytest.raises(UserError, match=text):
            score.check(score.Config(**{"checkpoint": networks, "targets": (target,), **changes}))


def test_a_network_of_transformers_is_scored(target: Path, tmp_path: Path) -> None:
    import torch
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(0)
    config = SegformerConfig(
        num_labels=19, depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 8, 8], decoder_hidden_size=8,
        num_attention_heads=[1, 1, 1, 1], id2label=dict(enumerate(CLASS_NAMES)),
    )  # fmt: skip
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "hub")
    scoring = score.Config(
        checkpoint=(tmp_path / "hub",), targets=(target,), output=tmp_path / "s.json"
    )
    score.run(scoring, score.check(scoring))
    (entry,) = json.loads(scoring.output.read_text())["checkpoints"]
    assert entry["kind"] == "transformers" and entry["selection"] == {"rule": "not recorded"}
    assert np.isfinite(entry["mean_miou"]) and entry["calibration"]["acdc"]["ece"] is not None
    smaller = dataclasses.replace(scoring, size_px=(64, 128), output=tmp_path / "t.json")
    score.run(smaller, score.check(smaller))
    assert json.loads(smaller.output.read_text())["size_px"] == [64, 128]


def test_what_would_count_twice_or_is_no_number_is_named(
    networks, target: Path, tmp_path: Path
) -> None:
    output = tmp_path / "s.json"
    for changes, text in (
        ({"targets": (target, target / ".." / target.name)}, "--targets .*acdc: is named twice"),
        ({"checkpoint": (networks[0], networks[0])}, "--checkpoint .*: is named twice"),
    ):
        settings = {"checkpoint": networks[:1], "targets": (target,), "output": output, **changes}
        with pytest.raises(UserError, match=text):
            score.check(score.Config(**settings))
    broken = tmp_path / "broken"
    shutil.copytree(networks[1], broken)
    weights = load_file(broken / WEIGHTS_FILE)
    bias = next(name for name in weights if name.endswith("conv_seg.bias"))
    weights[bias][:] = float("nan")
    save_file(weights, broken / WEIGHTS_FILE)
    config = score.Config(checkpoint=(broken,), targets=(target,), output=output)
    with pytest.raises(UserError, match=r"broken: its probabilities for .*\.png are not numbers"):
        score.run(config, score.check(config))
    assert not list(tmp_path.glob("s.*"))


def test_tables_beside_the_scores_are_not_replaced(networks, target: Path, tmp_path: Path) -> None:
    own = score.Config(checkpoint=networks[:1], targets=(target,), output=tmp_path / "own.json")
    for _ in range(2):
        score.run(own, score.check(own))
        own.output.unlink()
    (tmp_path / "README.md").write_text("mine")
    for name, text in (("README.json", "exists and is not a table"), ("s.md", "its own table")):
        config = score.Config(checkpoint=networks, targets=(target,), output=tmp_path / name)
        with pytest.raises(UserError, match=text):
            score.check(config)
    assert (tmp_path / "README.md").read_text() == "mine"
    (tmp_path / "one.rows.jsonl").mkdir()
    (tmp_path / "two.rows.jsonl").write_text("mine")
    (tmp_path / "three.figures").write_text("mine")
    (tmp_path / "four.figures").symlink_to(target)
    for name, text in (("one", "is a folder"), ("two", "exists and is not a table"),
                       ("three", "is not a folder"), ("four", "is a link")):  # fmt: skip
        config = dataclasses.replace(own, output=tmp_path / f"{name}.json", figures=True)
        with pytest.raises(UserError, match=text):
            score.check(config)
