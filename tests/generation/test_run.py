"""The program itself: resume, process counts, failures, labels, bad input."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from generation import run, worker
from generation.prompts import Grammar
from generation.sampler import networks as loading
from generation.sampler import sampler as drawing
from generation.sampler.color_transfer import transfer_details
from generation.samples import ATTEMPTS
from pipeline import files, labels
from pipeline.dataset import open_dataset, read_pair
from pipeline.errors import EXIT_INCOMPLETE, UserError
from pipeline.images import read_image
from pipeline.metadata import read_rows
from pipeline.reading import read_json

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def call(monkeypatch, flags):
    """A function that runs the program in this process and returns its exit code."""

    def run_main(*arguments: object, with_flags: bool = True) -> int:
        argv = ["run.py", *(flags if with_flags else []), *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", argv)
        return run.main() or 0

    return run_main


def hashes(folder: Path) -> dict[str, tuple[str, str]]:
    rows = read_rows(folder).values()
    return {r["id"]: (r["image_sha256"], r["label_sha256"]) for r in rows if r["status"] == "ok"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, flags) -> Path:
    """A finished set of four samples, made without interruption by one process."""
    folder = tmp_path_factory.mktemp("generated") / "set"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["run.py", *flags, "--n", "4", "--output", str(folder)])
        assert not run.main()
    return folder


def test_set_is_a_dataset_folder(finished):
    samples = open_dataset(finished, labelled=True)
    assert len(samples) == 4
    for sample in samples:
        image, label = read_pair(sample)
        assert image.shape == (32, 64, 3) and label.shape == (32, 64)
        row = sample.row
        assert files.sha256(sample.image.read_bytes()) == row["image_sha256"]
        assert "road" in row["prompt"] and row["condition"] in Grammar().conditions
        assert row["tiles"] <= row["tiles_total"] == 9
        assert row["evaluations"] == 3 * (1 + row["tiles"])
        assert set(row["revisions"]) == {"base", "unet", "controlnet"}
    record = read_json(finished / "run.json")
    assert "torch" in record["versions"] and "n" not in record["config"]
    assert "\n# Generated street scenes\n" in (finished / "README.md").read_text()


def test_labels_are_the_crops_of_the_label_maps(finished, label_folder):
    for sample in open_dataset(finished, labelled=True):
        whole = labels.read_label(label_folder / sample.row["source_label"])
        top, left, height, width = sample.row["crop"]
        assert np.array_equal(
            labels.read_label(sample.label), whole[top : top + height, left : left + width]
        )


def test_details_come_from_the_source_image_of_the_crop(call, tiny_dataset, tmp_path):
    data = tiny_dataset(4, 48, 96)
    plain, sharp = tmp_path / "plain", tmp_path / "sharp"
    assert call("--n", 3, "--label-maps", data, "--output", plain) == 0
    assert (
        call("--n", 3, "--label-maps", data, "--color-transfer", "source", "--output", sharp) == 0
    )
    assert "colours transferred to the source images" in (sharp / "README.md").read_text()
    plain_images = {s.id: read_pair(s)[0] for s in open_dataset(plain, labelled=True)}
    for sample in open_dataset(sharp, labelled=True):
        image, label = read_pair(sample)
        source = read_image(data / sample.row["source_label"].replace("labels", "images"))
        top, left, height, width = sample.row["crop"]
        source = source[top : top + height, left : left + width]
        expected = transfer_details(plain_images[sample.id], source, label, 0.1 * height)
        assert np.array_equal(image, expected)


def test_larger_n_continues_and_smaller_n_keeps_all(call, finished, tmp_path, capsys):
    assert call("--n", 2, "--output", tmp_path / "set") == 0
    assert call("--n", 4, "--output", tmp_path / "set") == 0
    assert hashes(tmp_path / "set") == hashes(finished)
    assert call("--n", 2, "--output", tmp_path / "set") == 0
    assert "4 samples; 2 more than --n" in capsys.readouterr().out


def test_two_processes_make_the_same_bytes(finished, flags, tmp_path):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--",
        "generation/run.py", *flags, "--n", "4", "--output", str(tmp_path / "set"),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert hashes(tmp_path / "set") == hashes(finished)
    sizes = [len(p.read_text().splitlines()) for p in (tmp_path / "set").glob("metadata-*.jsonl")]
    assert sum(sizes) == 4
    # The last one speaks; so does the first one where it ends before the other has begun
    assert set(done.stdout.splitlines()) == {f"{tmp_path / 'set'}: 4 samples"}


def test_one_and_three_processes_make_the_same_set_of_the_pocket_model(tmp_path):
    """Two of the three are started by torchrun, one joins them in the same folder."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--")

    def start(folder: str, *launcher: str) -> subprocess.Popen:
        command = [sys.executable, *launcher, "generation/run.py", "--n", "5", "--steps", "1"]
        command += ["--output", str(tmp_path / folder)]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    alone, *three = start("one"), start("three", *torchrun), start("three")
    assert {process.wait(900) for process in (alone, *three)} == {0}
    assert "".join(process.stdout.read() for process in three).count("three: 5 samples") >= 1
    assert len(hashes(tmp_path / "one")) == 5
    assert hashes(tmp_path / "one") == hashes(tmp_path / "three")
    rows = [p.read_text().count("\n") for p in (tmp_path / "three").glob("metadata-*.jsonl")]
    assert sum(rows) == 5 and not (tmp_path / "three" / "claims").exists()


def test_killed_run_continues_to_the_same_set(call, finished, flags, tmp_path):
    folder = tmp_path / "set"
    command = [sys.executable, "generation/run.py", *flags, "--n", "4", "--output", str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not hashes(folder) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with open(folder / "metadata-000.jsonl", "ab") as handle:
        handle.write(b'{"id": "0000')  # a torn line
    (folder / "images" / "0000" / "x.png.part-99999999-0").write_bytes(b"")
    assert call("--n", 4, "--output", folder) == 0
    assert hashes(folder) == hashes(finished)
    assert not list(folder.rglob("*.part-*"))


def test_stop_signal_finishes_the_current_sample(call, finished, tmp_path, monkeypatch):
    make = worker.SampleMaker.make

    def make_and_stop(self, items):
        os.kill(os.getpid(), signal.SIGTERM)
        return make(self, items)

    monkeypatch.setattr(worker.SampleMaker, "make", make_and_stop)
    assert call("--n", 4, "--output", tmp_path / "set") == 128 + signal.SIGTERM
    assert len(hashes(tmp_path / "set")) == 1
    monkeypatch.setattr(worker.SampleMaker, "make", make)
    assert call("--n", 4, "--output", tmp_path / "set") == 0
    assert hashes(tmp_path / "set") == hashes(finished)


@pytest.mark.parametrize("image_batch", [1, 2])
def test_unusable_images_are_tried_again_and_then_rows(
    call, tmp_path, monkeypatch, capsys, image_batch
):
    start, tried, bad = drawing.Sampler.start, [], set()

    def spoil(self, specs):
        tried.extend(spec.seed for spec in specs)
        return [
            dataclasses.replace(pending, pixels=pending.pixels * 0)
            if pending.spec.seed in bad or not bad else pending
            for pending in start(self, specs)
        ]  # fmt: skip

    monkeypatch.setattr(drawing.Sampler, "start", spoil)
    arguments = ("--n", 2, "--image-batch", image_batch, "--output", tmp_path / "set")
    assert call(*arguments) == EXIT_INCOMPLETE
    assert "could not be generated (00000000, 00000001)" in capsys.readouterr().err
    assert len(set(tried)) == 2 * ATTEMPTS
    row = read_rows(tmp_path / "set")["00000000"]
    assert row["status"] == "failed" and "constant" in row["error"]

    bad.add(tried[0])  # now the first attempt of the first sample alone
    tried.clear()
    assert call(*arguments) == 0
    rows = read_rows(tmp_path / "set")
    assert [rows[key]["attempt"] for key in ("00000000", "00000001")] == [1, 0]
    assert rows["00000000"]["status"] == "ok" and rows["00000000"]["seed"] == tried[2]


def test_not_finite_and_constant_images_are_noticed(networks, tiny_config, make_label):
    import torch

    config = dataclasses.replace(tiny_config, fusion="none", steps=1)
    for value, problem in ((float("nan"), "not finite"), (0.0, "constant")):
        decoded = torch.full((1, 3, 8, 8), value)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(drawing, "decode_latents", lambda vae, z, d=decoded: d)
            sample = drawing.Sampler(networks, config).generate(make_label(32, 64), "road", 0)
        assert sample.image is None and problem in sample.problem


def test_real_size_gta_labels_keep_void(call, tmp_path):
    ids = np.zeros((1052, 1914), dtype=np.uint8)  # unlabelled
    ids[500:] = 7
    ids[400:500, ::7] = 24
    ids[300:400, 50:90] = 28
    image = Image.fromarray(ids, mode="P")
    image.putpalette(list(range(256)) * 3)
    (tmp_path / "gta").mkdir()
    image.save(tmp_path / "gta" / "00001.png")
    code = call(
        "--label-maps", tmp_path / "gta", "--label-space", "gta", "--label-height-px", 64,
        "--n", 2, "--steps", 1, "--output", tmp_path / "set",
    )  # fmt: skip
    assert code == 0
    seen = set()
    for sample in open_dataset(tmp_path / "set", labelled=True):
        with Image.open(sample.label) as saved:
            assert saved.mode == "L" and saved.size == (64, 32)
            seen |= set(np.unique(np.array(saved)).tolist())
    assert 255 in seen and seen <= {0, 11, 15, 255}


def test_dry_run_counts_without_torch_and_writes_nothing(flags, tmp_path, run_program):
    code = (
        "import os, runpy, sys\n"
        "sys.argv = sys.argv[1:]; sys.path[0] = os.path.abspath('generation')\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: print('torch' in sys.modules)"
    )
    folder = tmp_path / "set"
    done = run_program(
        "-c", code, "generation/run.py", *flags, "--n", 500, "--dry-run", "--output", folder
    )
    assert "conditions:" in done.stdout and "label map chosen for class:" in done.stdout
    assert "500 are missing" in done.stdout and "MB free" in done.stdout
    assert done.stdout.rstrip().endswith("False") and not folder.exists()


def test_other_settings_or_models_are_refused(call, finished, tiny_controlnet, tmp_path):
    with pytest.raises(UserError, match="another run.*seed: 0 -> 1"):
        call("--seed", 1, "--output", finished)
    other = tmp_path / "controlnet"
    other.mkdir()
    for path in tiny_controlnet.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    (other / "config.json").write_text((other / "config.json").read_text() + " ")
    with pytest.raises(UserError, match=r"models\.controlnet: '"):
        call("--controlnet", other, "--output", finished)


def test_foreign_output_folder_is_refused(call, tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(UserError, match="holds mine.txt and has no run.json"):
        call("--output", tmp_path)
    with pytest.raises(UserError, match="is a file"):
        call("--output", tmp_path / "mine.txt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plan-file", "plan.jsonl"], "is written by --dry-run"),
        (["--n", 0], "--n 0: must be in 1..1000000"),
        (["--n", -3], "--n -3: must be in 1..1000000"),
        (["--label-maps", "no/such"], "no/such: no such folder"),
        (["--base", "no/such"], "base model 'no/such'"),
        (["--controlnet", "no/such"], "has no config.json"),
        (["--unet", "no/such"], "has no config.json"),
        (["--label-space", "mars"], "--label-space mars: not known; use one of"),
        (["--crop-px", 64, 128], "smaller than the crop"),
        (["--tile-px", 12, 32], "must be multiples of"),
        (["--tile-px", 64, 64], "tile height exceeds"),
        (["--stride-px", 20, 16], "leaves gaps"),
        (["--stride-px", 3, 16], "must be multiples of 4"),
        (["--base-pass-classes", "road", "moon"], "--base-pass-classes 'moon': use road, sidewalk"),
        (["--fusion", "reference", "--scheduler", "unipc"], "--fusion aligned"),
    ],
)
def test_bad_settings_are_one_line_with_a_remedy(call, tmp_path, arguments, message):
    with pytest.raises(UserError) as caught:
        call("--output", tmp_path / "set", *arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "set").exists()


def test_unwritable_output_is_found_before_weights(call, tmp_path, monkeypatch):
    def refuse(folder, setting="--output"):
        raise UserError(f"{folder}: cannot be written; choose another folder or free it")

    monkeypatch.setattr(run, "require_writable", refuse)
    monkeypatch.setattr(loading, "load_networks", None)
    with pytest.raises(UserError, match="cannot be written"):
        call("--output", tmp_path / "set")


def test_full_disk_is_found_before_weights(call, tmp_path, monkeypatch):
    monkeypatch.setattr(run.dry_run, "disk_free", lambda folder: 10)
    with pytest.raises(UserError, match="free some space"):
        call("--output", tmp_path / "set")


def test_three_channel_controlnet_is_refused(call, tiny_controlnet, tmp_path):
    other = shutil.copytree(tiny_controlnet, tmp_path / "other")
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**settings, "conditioning_channels": 3}))
    with pytest.raises(UserError, match="3 condition channels"):
        call("--controlnet", other, "--output", tmp_path / "set")


def test_colour_labels_are_refused(call, tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (64, 32), (70, 130, 180)).save(tmp_path / "in" / "a.png")
    with pytest.raises(UserError, match=r"a\.png: label.* RGB.*--label-pattern"):
        call("--label-maps", tmp_path / "in", "--output", tmp_path / "set")
