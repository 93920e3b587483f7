"""A stopped scoring continues from its rows, with the result of one that was never stopped."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from pipeline.claims import sole_writer
from pipeline.dataset import open_dataset
from pipeline.errors import UserError
from segtrain import score
from segtrain.checkpoints import WEIGHTS_FILE
from segtrain.evaluation import parts, rows, streaming
from tests.segtrain.test_selection import networks as networks  # a fixture
from tests.segtrain.test_selection import target as target  # a fixture

NUM_IMAGES = 3


class Calls:
    """Counts the images that are predicted; the one after `left` more is stopped."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.made: list[str] = []
        self.left = 1000
        self._original = streaming.score_image
        patch.setattr(streaming, "score_image", self._score)

    def _score(self, predict, sample, target, network):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self.made.append(f"{network} {sample.id}")
        return self._original(predict, sample, target, network)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


def run(config: score.Config) -> dict[str, bytes]:
    """Score, and return the files that this writes."""
    score.run(config, score.check(config))
    names = ("s.json", "s.rows.jsonl", "s.md")
    assert sorted(p.name for p in config.output.parent.iterdir()) == sorted(names)
    return {name: (config.output.parent / name).read_bytes() for name in names}


def remove(config: score.Config) -> None:
    for path in config.output.parent.iterdir():
        path.unlink()


def stop_after(number: int, config: score.Config, calls: Calls) -> None:
    calls.left, calls.made = number, []
    with pytest.raises(KeyboardInterrupt):
        score.run(config, score.check(config))
    assert not config.output.exists() and not rows.rows_file(config.output).exists()
    calls.left, calls.made = 1000, []


@pytest.fixture
def config(networks, target: Path, tmp_path: Path) -> score.Config:
    (tmp_path / "out").mkdir()
    return score.Config(
        checkpoint=networks, targets=(target,), output=tmp_path / "out/s.json", figures=False
    )


def test_rows_that_are_there_are_not_made_again(config, calls: Calls) -> None:
    whole = run(config)
    assert len(calls.made) == 2 * NUM_IMAGES
    remove(config)
    stop_after(4, config, calls)
    part = parts.part_file(config.output, 0)
    part.rename(parts.part_file(config.output, 5))  # of an earlier start on more processes
    assert run(config) == whole
    assert len(calls.made) == 2 * NUM_IMAGES - 4


def test_a_second_scoring_of_the_same_file_touches_no_row(config, calls: Calls) -> None:
    whole = run(config)
    remove(config)
    stop_after(2, config, calls)
    part = parts.part_file(config.output, 0)
    cut = part.read_bytes()[:-7]  # the first is in the middle of a line
    part.write_bytes(cut)
    with (
        sole_writer(config.output, beside=True),
        pytest.raises(UserError, match=rf"s.json: process {os.getpid()} on .*; wait for its end"),
    ):
        score.run(config, score.check(config))
    assert part.read_bytes() == cut and not calls.made
    assert run(config) == whole


def test_damaged_rows_are_made_again(config, calls: Calls) -> None:
    whole = run(config)
    remove(config)
    stop_after(5, config, calls)
    part = parts.part_file(config.output, 0)
    lines = part.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"confusion": [[', b'"confusion": [[-')
    lines[2] = b"\0" * (len(lines[2]) - 1) + b"\n"
    part.write_bytes(b"".join(lines)[:-7])  # the last one is cut
    assert run(config) == whole
    assert len(calls.made) == 1 + 3


def test_rows_of_others_are_not_used(config, networks, tmp_path: Path, calls: Calls) -> None:
    target = tmp_path / "acdc"
    shutil.copytree(config.targets[0], target)
    network = tmp_path / "network"
    shutil.copytree(networks[1], network)
    config = dataclasses.replace(config, checkpoint=(network,), targets=(target,))
    stop_after(2, config, calls)
    run(dataclasses.replace(config, size_px=(32, 64)))
    assert len(calls.made) == NUM_IMAGES

    remove(config)
    stop_after(2, config, calls)
    weights = load_file(network / WEIGHTS_FILE)
    name = next(name for name in weights if name.endswith("conv_seg.bias"))
    weights[name][0] += 1
    save_file(weights, network / WEIGHTS_FILE)
    run(config)
    assert len(calls.made) == NUM_IMAGES

    remove(config)
    stop_after(2, config, calls)
    image = sorted(target.glob("images/*/*.png"))[0]
    image.write_bytes(image.read_bytes())  # another time
    run(config)
    assert len(calls.made) == NUM_IMAGES - 1


def test_a_candidate_without_numbers_is_marked_and_never_chosen(
    networks, source: Path, target: Path, tmp_path: Path, capsys
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(networks[1], broken)
    weights = load_file(broken / WEIGHTS_FILE)
    name = next(name for name in weights if name.endswith("conv_seg.bias"))
    weights[name][:] = float("nan")
    save_file(weights, broken / WEIGHTS_FILE)
    config = score.Config(
        checkpoint=(broken, networks[0]), targets=(target,), select_on=source, limit=1,
        output=tmp_path / "s.json",
    )  # fmt: skip
    score.run(config, score.check(config))
    (entry,) = json.loads(config.output.read_text())["checkpoints"]
    assert entry["checkpoint"] == str(networks[0])
    assert entry["selection"]["candidates"]["broken"] is None
    assert "without broken, whose probabilities are not numbers" in capsys.readouterr().out

    other = tmp_path / "other"
    shutil.copytree(broken, other)
    config = dataclasses.replace(config, checkpoint=(broken, other), output=tmp_path / "t.json")
    with pytest.raises(UserError, match="--select-on .*: the probabilities of all 2 networks are"):
        score.run(config, score.check(config))
    assert not list(tmp_path.glob("t.*"))


def test_rows_under_an_earlier_label_space_are_made_again(
    target: Path, tmp_path: Path, calls: Calls
) -> None:
    space, void = tmp_path / "space.yaml", f"void: [255, {', '.join(map(str, range(1, 19)))}]\n"
    space.write_text(f"train_ids: {{0: 0}}\n{void}")
    for sample in open_dataset(target, labelled=True):
        path = tmp_path / "predicted" / sample.image.relative_to(target)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(sample.label, path)
    (tmp_path / "out").mkdir()
    config = score.Config(
        predictions=tmp_path / "predicted", prediction_space=str(space), targets=(target,),
        output=tmp_path / "out/s.json",
    )  # fmt: skip
    stop_after(NUM_IMAGES - 1, config, calls)
    space.write_text(f"train_ids: {{0: 1}}\n{void}")
    changed = run(config)
    assert len(calls.made) == NUM_IMAGES
    remove(config)
    assert run(config) == changed
