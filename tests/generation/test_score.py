"""The program that scores a dataset folder, with a network that knows classes by their colours."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from generation import score
from generation.quality import score_rows, sets, summary
from pipeline import files
from pipeline.claims import Claims
from pipeline.dataset import open_dataset
from pipeline.dataset_writer import DatasetWriter
from pipeline.errors import UserError

HERE = Path(__file__).parent
TOY = "toy_segmenter:ToySegmenter"


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """A function that runs the program in this process."""
    monkeypatch.syspath_prepend(str(HERE))

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["generation/score.py", *map(str, arguments)])
        return score.main() or 0

    return run


@pytest.fixture
def judge(tmp_path: Path) -> Path:
    folder = tmp_path / "judge"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def data(tiny_dataset, tmp_path: Path) -> Path:
    """Ten images, of which two show another street than their labels say."""
    folder = tiny_dataset(10, 32, 64, conditions=("fog", "night"), folder=tmp_path / "data")
    for index in (2, 7):
        place = folder / "images/0000"
        pixels = np.array(Image.open(place / f"{index:08d}.png"))
        Image.fromarray(pixels[::-1, ::-1]).save(place / f"{index:08d}.png")
    return folder


def toy(judge: Path) -> list[object]:
    return ["--segmenters", judge, "--segmenter-class", TOY, "--batch-size", 2]


def test_wrong_images_have_the_lowest_scores(
    call, data: Path, judge: Path, tiny_dataset, capsys
) -> None:
    before = {p: p.read_bytes() for p in data.rglob("*") if p.is_file()}
    source = tiny_dataset(3, 32, 64, seed=5)
    assert call("--data", data, "--source", source, "--costs", *toy(judge)) == 0
    rows = [json.loads(line) for line in (data / "quality/data.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [
        sample.id for sample in open_dataset(data, labelled=True)
    ]
    scores = {row["id"]: row["fidelity"]["judge"]["miou"] for row in rows}
    assert set(sorted(scores, key=scores.__getitem__)[:2]) == {"00000002", "00000007"}
    found = json.loads((data / "quality/summary.json").read_text())
    conditions = found["conditions"]
    assert {name: group["images"] for name, group in conditions.items()} == {"fog": 5, "night": 5}
    whole = found["all"]["fidelity"]["judge"]
    assert whole["ceiling_miou"] > 90 and whole["share_of_ceiling"] < 80
    assert found["classes"]["judge"]["road"]["ceiling_iou"] > 95
    assert "predicts" in found["warning"] and "ceiling" in capsys.readouterr().out
    assert {p: p.read_bytes() for p in before} == before, "the dataset itself stays as it is"
    assert all((data / "quality" / row["costs"]["judge"]).is_file() for row in rows)
    assert len(open_dataset(data, labelled=True)) == 10


def test_the_summary_agrees_with_pixels_counted_again(call, data: Path, judge: Path) -> None:
    """By another way: one confusion matrix over all pixels of the set."""
    from toy_segmenter import ToySegmenter

    call("--data", data, *toy(judge))
    confusion = np.zeros((19, 19), np.int64)
    for sample in open_dataset(data, labelled=True):
        image = np.array(Image.open(sample.image).convert("RGB"))
        label = np.array(Image.open(sample.label))
        predicted = ToySegmenter().costs([image])[0].argmin(0)
        for truth, seen in zip(label[label < 19], predicted[label < 19], strict=True):
            confusion[truth, seen] += 1
    iou = np.diag(confusion) / (confusion.sum(0) + confusion.sum(1) - np.diag(confusion))
    found = json.loads((data / "quality/summary.json").read_text())
    assert found["all"]["fidelity"]["judge"]["miou"] == pytest.approx(100 * iou.mean(), abs=0.01)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.name != "config.json"
    }


def test_a_stopped_run_continues_and_ends_with_the_same_bytes(
    call, data: Path, judge: Path, tmp_path: Path, monkeypatch
) -> None:
    assert call("--data", data, "--output", tmp_path / "straight", "--costs", *toy(judge)) == 0
    append, calls = score_rows.Appender.append, []

    def dying(self, rows) -> None:
        calls.append(rows)
        if len(calls) == 3:  # killed within a write
            with open(self.path, "ab") as handle:
                handle.write(json.dumps(rows[0]).encode()[:40])
            raise KeyboardInterrupt
        append(self, rows)

    words = ("--data", data, "--output", tmp_path / "stopped", "--costs", *toy(judge))
    monkeypatch.setattr(score_rows.Appender, "append", dying)
    with pytest.raises(KeyboardInterrupt):
        call(*words)
    monkeypatch.setattr(score_rows.Appender, "append", append)
    assert not (tmp_path / "stopped/summary.json").exists()
    assert call(*words) == 0
    assert contents(tmp_path / "stopped") == contents(tmp_path / "straight")


def test_two_processes_write_what_one_writes(
    call, data: Path, judge: Path, tmp_path: Path, run_program
) -> None:
    words = ["--data", data, *toy(judge)]
    assert call(*words, "--output", tmp_path / "one") == 0
    run_program(
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "--",
        "generation/score.py", *words, "--output", tmp_path / "two",
        PYTHONPATH=str(HERE),
    )  # fmt: skip
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_a_ray_cluster_writes_what_one_process_writes(
    call, data: Path, judge: Path, tmp_path: Path, run_program
) -> None:
    pytest.importorskip("ray", reason="ray is not installed; pip install -e '.[ray]'")
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    command = [
        "generation/score.py",
        "--data",
        data,
        *toy(judge),
        "--costs",
        "--features",
        "pocket",
    ]
    run_program(*command, "--output", tmp_path / "one", PYTHONPATH=path)
    on_ray = ("--ray", "local", "--ray-workers", 2)
    run_program(*command, "--output", tmp_path / "ray", *on_ray, PYTHONPATH=path)
    assert contents(tmp_path / "ray") == contents(tmp_path / "one")


def test_a_ray_cluster_needs_one_process(call, data: Path, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--ray auto: the cluster divides the work; start one"):
        call("--data", data, "--ray", "auto")


def change_row(data: Path, index: int, **values: object) -> None:
    rows = [json.loads(line) for line in (data / "metadata-000.jsonl").open()]
    rows[index] = {k: v for k, v in rows[index].items() if k != "row_sha256"} | values
    (data / "metadata-000.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_nothing_is_scored_twice_and_changed_samples_are(
    call, data: Path, judge: Path, monkeypatch
) -> None:
    words = ("--data", data, *toy(judge))
    call(*words)
    first = contents(data / "quality")
    monkeypatch.setattr("generation.quality.judges.Judges", None)  # nothing may be loaded
    call(*words)
    assert contents(data / "quality") == first
    monkeypatch.undo()
    change_row(data, 4, image_sha256="0" * 64)
    monkeypatch.setattr(sys, "argv", ["generation/score.py", *map(str, words)])
    score.main()
    after = {r["id"]: r for r in map(json.loads, (data / "quality/data.jsonl").open())}
    assert after["00000004"]["state"].startswith("0" * 16)


@pytest.mark.parametrize("process", [1, 0])
def test_rows_of_earlier_files_hide_no_newer_row(call, data: Path, judge: Path, process) -> None:
    """Two processes were stopped, a sample was generated again, and one process goes on."""
    words = ("--data", data, *toy(judge))
    call(*words)
    os.replace(data / "quality/data.jsonl", data / f"quality/data-{process:03d}.jsonl")
    change_row(data, 4, image_sha256="0" * 64)
    assert call(*words) == 0
    after = {r["id"]: r["state"] for r in map(json.loads, (data / "quality/data.jsonl").open())}
    assert after["00000004"].startswith("0" * 16) and len(after) == 10


def test_a_second_scoring_into_one_folder_is_refused(
    call, data: Path, judge: Path, monkeypatch
) -> None:
    words = ("--data", data, *toy(judge))
    with Claims(data / "quality"), pytest.raises(UserError, match="is writing to it; wait"):
        call(*words)
    holder = {"host": "here", "host_id": files.host_id(), "pid": os.getppid(), "id": "00000000"}
    (data / "quality/claims").mkdir()
    (data / "quality/claims/writer-000").write_text(json.dumps(holder))
    with monkeypatch.context() as patch:  # both have found the folder idle
        patch.setattr("pipeline.claims.require_idle", lambda *_: None)
        with pytest.raises(UserError, match=f"process {os.getppid()} on here is writing"):
            call(*words)
    (data / "quality/claims/writer-000").unlink()
    assert not (data / "quality/data.jsonl").exists()
    assert call(*words) == 0 and not (data / "quality/claims").exists()


def test_another_setting_is_refused(call, data: Path, judge: Path) -> None:
    call("--data", data, *toy(judge))
    with pytest.raises(UserError, match="band_share: 0.01 -> 0.02"):
        call("--data", data, *toy(judge), "--band-share", 0.02)


def test_attributes_are_read_off_the_image(call, tmp_path: Path) -> None:
    """Bright and dark images; one generated image shows the other than its row says."""
    folders = {}
    for name, count in (("looks", 60), ("data", 6)):
        writer = DatasetWriter(tmp_path / name, config={"name": name})
        for index in range(count):
            rng = np.random.default_rng([count, index])
            dark = index % 2
            image = rng.integers(0, 60, (32, 64, 3)) + (0 if dark else 180)
            said = "night" if dark else "day"
            row = {"condition": "night" if (name, index) == ("data", 0) else said}
            writer.write(index, image.astype(np.uint8), None, row)
        folders[name] = tmp_path / name
    assert call("--data", folders["data"], "--looks", folders["looks"]) == 0
    found = json.loads((folders["data"] / "quality/summary.json").read_text())
    assert found["heldout"]["condition"]["top1"] == 100
    assert found["all"]["attributes"]["condition"] == {"accuracy": 83.33, "images": 6}
    assert found["conditions"]["night"]["attributes"]["condition"]["accuracy"] == 75
    assert found["conditions"]["day"]["attributes"]["condition"]["accuracy"] == 100


def test_features_give_distances_and_variety(call, tiny_base: Path, tiny_dataset) -> None:
    data, reference = tiny_dataset(6, 32, 64), tiny_dataset(7, 32, 64, seed=3)
    words = ("--data", data, "--features", tiny_base, "--reference", reference)
    assert call(*words) == 0
    found = json.loads((data / "quality/summary.json").read_text())
    assert found["distances"][str(tiny_base)]["n"] == [7, 6]
    assert found["diversity"][str(tiny_base)] is None, "each label map has one image"
    first = contents(data / "quality")
    assert call(*words) == 0
    assert contents(data / "quality") == first


def test_a_sample_more_keeps_the_features_of_the_others(
    call, tiny_base: Path, tiny_dataset, tmp_path: Path
) -> None:
    """The blocks 02 34 5 become 01 23 45, of which only the first goes through the network."""
    data = tiny_dataset(6, 32, 64)
    words = ("--data", data, "--features", tiny_base, "--batch-size", 2)
    change_row(data, 1, status="failed")
    assert call(*words) == 0
    change_row(data, 1, status="ok")
    assert call(*words) == 0
    assert call(*words, "--output", tmp_path / "straight") == 0
    names = [str(tiny_base)]
    samples = open_dataset(data, labelled=False)
    found, expected = (
        score_rows.read_features(folder, "data", samples, names)[names[0]]
        for folder in (data / "quality", tmp_path / "straight")
    )
    assert len(found) == 6 and np.allclose(found, expected)


def test_variety_of_label_maps_by_hand() -> None:
    features = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])  # mean 0
    assert sets.diversity([[0, 1]], features)["mean"] == 2
    found = sets.diversity([[0, 2], [1, 0]], features)
    assert found == {"mean": 1.5, "deviation": 0.5, "label_maps": 2}
    assert sets.diversity([], features) is None


def test_a_share_compares_the_classes_that_both_have() -> None:
    own, most = np.zeros((3, 19), np.int64), np.zeros((3, 19), np.int64)
    own[:, 0], own[:, 1] = (5, 10, 10), (1, 1, 1)  # IoU 1/3; 1, which the ceiling has not
    most[:, 0], most[:, 2] = (8, 8, 10), (3, 3, 3)  # IoU 4/5
    assert summary.common_share(own, most) == pytest.approx(100 * (1 / 3) / (4 / 5))
    assert summary.common_share(own, np.zeros_like(most)) is None


BAD = [  # (flags, what the line says)
    (["--data", "nowhere"], "no such dataset folder"),
    (
        ["--data", "memory://set"],
        "memory://set/quality: is an address; name a path of this machine",
    ),
    (["--batch-size", 0], "--batch-size 0: must be 1 or more"),
    (["--band-share", "nan"], "--band-share nan: must be a number"),
    (["--small-share", -1], "--small-share -1: must be in 0..1"),
    (["--costs-stride", 100], "must be in 1..64"),
    (["--duplicate-bits", 999], "must be in 0..128"),
    (["--limit", 0], "--limit 0: must be 1 or more"),
    (["--limit", 1], "give --output a folder of its own"),
    (["--costs"], "--costs: needs --segmenters"),
    (["--source", "x"], "--source: needs --segmenters"),
    (["--reference", "x"], "--reference: distances need --features"),
    (["--segmenters", "nowhere"], "no such folder; give output folders of segtrain/train.py"),
    (
        ["--segmenters", ".", "--segmenter-class", "no.such:Thing"],
        "not an installed package.module:Class",
    ),
    (["--segmenters", ".", "--segmenter-class", "json"], "not an installed package.module:Class"),
    (["--segmenters", ".", "--segmenter-class", "json:loads"], "has no from_pretrained and costs"),
    (["--features", "imagenet", "imagenet"], "is named twice"),
    (["--features", "/nowhere"], "--features /nowhere: use imagenet, pocket"),
    (["--looks", "SELF"], "name 0 values of 'condition'"),
    (["--looks", "SELF", "--attributes"], "--attributes: name at least one"),
]


@pytest.mark.parametrize(("flags", "said"), BAD, ids=lambda v: " ".join(map(str, v))[:40])
def test_bad_input_is_one_line_and_writes_nothing(call, tiny_dataset, flags, said) -> None:
    data = tiny_dataset(2, 32, 64)
    flags = [str(data) if f == "SELF" else f for f in flags]
    with pytest.raises(UserError, match=said.replace("(", r"\(").replace("..", r"\.\.")) as caught:
        call("--data", data, *flags)
    assert "\n" not in str(caught.value)
    assert not list((data / "quality").rglob("*.jsonl"))


def test_damaged_rows_and_unlabelled_sets_are_named(call, data: Path, judge, tiny_dataset) -> None:
    call("--data", data, *toy(judge))
    path = data / "quality/data.jsonl"
    path.write_text("{broken\n" + path.read_text())
    with pytest.raises(UserError, match=r"data.jsonl:1: broken row"):
        call("--data", data, *toy(judge))
    unlabelled = tiny_dataset(2, 32, 64, labelled=False)
    with pytest.raises(UserError, match="has no label"):
        call("--data", unlabelled, *toy(judge))


def test_a_network_of_transformers_is_a_judge(call, data: Path, tmp_path: Path) -> None:
    import torch
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    names = ["road", "car", "sky"]
    config = SegformerConfig(
        num_labels=3, id2label=dict(enumerate(names)), hidden_sizes=[8, 8, 8, 8],
        depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 1, 1], decoder_hidden_size=8,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "segformer")
    assert call("--data", data, "--segmenters", tmp_path / "segformer") == 0
    found = json.loads((data / "quality/summary.json").read_text())
    assert 0 <= found["all"]["fidelity"]["segformer"]["miou"] < 50
    shutil.rmtree(data / "quality")
    config = json.loads((tmp_path / "segformer/config.json").read_text())
    config["id2label"] = {"0": "cat", "1": "dog", "2": "cow"}
    (tmp_path / "segformer/config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="none of its classes"):
        call("--data", data, "--segmenters", tmp_path / "segformer")
