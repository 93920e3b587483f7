"""What a release contains: samples, sums, layouts, metadata, card; the same from the same data."""

import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import checksums, export, files, labels, remote_files
from pipeline.dataset import check_dataset, find_images, open_dataset, read_pair
from pipeline.errors import UserError
from pipeline.exports.release_card import licence_chain
from pipeline.origins import kept_by_copies, refuse_test_data
from tests.pipeline.releases import ALL, NUM_SAMPLES, assert_same_samples, content, stop_at
from tests.pipeline.releases import data as data
from tests.pipeline.releases import fetch as fetch
from tests.pipeline.releases import pack as pack


def test_a_release_is_a_dataset_folder(pack: Callable[..., Path], data: Path) -> None:
    folder = pack()
    assert_same_samples(folder, data)
    samples = open_dataset(folder, labelled=True)
    check_dataset(samples)
    assert [path.name for path in find_images(folder)] == [f"{s.id}.png" for s in samples]
    assert sorted(p.name for p in (folder / "webdataset").iterdir()) == [
        f"train-{i:06d}.tar" for i in range(3)
    ]
    assert not (folder.parent / "set.packing").exists()


def test_verify_reads_the_members(
    pack: Callable[..., Path], run_program: Callable[..., Any]
) -> None:
    folder = pack()
    assert "0 problems" in run_program("pipeline/verify.py", "--data", folder).stdout
    shard = folder / "webdataset/train-000001.tar"
    damaged = bytearray(shard.read_bytes())
    damaged[2000] ^= 1
    shard.write_bytes(damaged)
    done = run_program("pipeline/verify.py", "--data", folder, check=False)
    assert done.returncode == 3 and "differs from its" in done.stdout
    shard.write_bytes(damaged[:3000])
    with pytest.raises(UserError, match="beyond the end of its shard"):
        open_dataset(folder, labelled=True)


def test_the_sample_is_scored_like_the_set(
    pack: Callable[..., Path], data: Path, tmp_path: Path, run_program: Callable[..., Any]
) -> None:
    target = shutil.copytree(data, tmp_path / "target")
    run = json.loads((data / "run.json").read_text())
    kept = {"role": "target", "protocol": {"eval_low_px": [8, 16]}, "classes": [["road", [0]]]}
    (target / "run.json").write_text(json.dumps({**run, **kept}))
    folder = pack(data=target)
    assert kept_by_copies(folder / "sample") == kept_by_copies(folder) == kept_by_copies(target)
    assert kept_by_copies(target)["role"] == "target"
    done = run_program("pipeline/verify.py", "--data", folder / "sample")
    assert "0 problems" in done.stdout


def test_a_released_target_elsewhere_is_a_target(
    pack: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    target = shutil.copytree(data, tmp_path / "target")
    run = json.loads((data / "run.json").read_text())
    kept = {"role": "target", "protocol": {"eval_low_px": [8, 16]}, "classes": [["road", [0]]]}
    (target / "run.json").write_text(json.dumps({**run, **kept}))
    far = Path(pack(data=target, output="memory://targets/set"))
    assert kept_by_copies(far) == kept_by_copies(target)
    with pytest.raises(UserError, match="is a target that networks are scored on"):
        refuse_test_data(far)
    store = remote_files.open_store("memory://targets/set")
    store.write("run.json", b"{")
    with pytest.raises(UserError, match="memory://targets/set/run.json: broken JSON .*download"):
        refuse_test_data(far)
    assert kept_by_copies(Path("memory://targets/nothing")) == {}


def test_sums_are_those_of_sha256sum(pack: Callable[..., Path]) -> None:
    folder = pack("--formats", *ALL)
    names = {line.split("  ")[1] for line in (folder / checksums.NAME).read_text().splitlines()}
    assert names == {n for n in content(folder) if n != checksums.NAME}
    if program := shutil.which("sha256sum"):
        command = [program, "--check", "--quiet", "--strict", checksums.NAME]
        assert subprocess.run(command, cwd=folder, check=False).returncode == 0


def test_equal_samples_make_equal_bytes(pack: Callable[..., Path], tmp_path: Path) -> None:
    first = pack("--formats", *ALL)
    again = pack("--formats", *ALL, output=tmp_path / "again")
    assert content(first) == content(again)


def test_layouts_are_those_of_the_exports(
    pack: Callable[..., Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pack("--formats", *ALL)
    for kind in ("coco_panoptic", "fiftyone"):
        argv = ["--data", str(data), "--output", str(tmp_path / kind), "--format", kind]
        monkeypatch.setattr(sys, "argv", ["export.py", *argv])
        export.main()
        for path in (folder / kind).glob("*.tar"):
            with tarfile.open(path) as archive:
                archive.extractall(tmp_path / f"{kind}_unpacked", filter="data")
        found = content(tmp_path / f"{kind}_unpacked")
        own = {k: v for k, v in content(tmp_path / kind).items() if k != "export.json"}
        assert {k: v for k, v in own.items() if not k.startswith("export-")} == found
    hub = pytest.importorskip("datasets")
    table = hub.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))["train"]
    assert len(table) == NUM_SAMPLES  # by the header of the card


def test_webdataset_and_the_hub_read_the_shards(
    pack: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    wds, hub = pytest.importorskip("webdataset"), pytest.importorskip("datasets")
    folder = pack()
    found = list(
        wds.WebDataset(f"{folder}/webdataset/train-{{000000..000002}}.tar", shardshuffle=False)
    )
    assert [item["__key__"] for item in found] == [s.id for s in open_dataset(data, labelled=True)]
    table = hub.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))["train"]
    assert len(table) == NUM_SAMPLES and table[0]["image.png"].size == (40, 24)


def test_croissant_is_valid_and_gives_the_samples(
    pack: Callable[..., Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROISSANT_CACHE", str(tmp_path / "cache"))  # read at its import
    croissant = pytest.importorskip("mlcroissant")
    folder = pack("--formats", "webdataset", "parquet", "--date", "2027-01-31", "--licence", "mit")
    found = croissant.Dataset(str(folder / "croissant.json"))
    assert not found.metadata.ctx.issues.errors and not found.metadata.ctx.issues.warnings
    wanted = {s.id: s for s in open_dataset(data, labelled=True)}
    for kind, index in (("image", 0), ("label", 1)):
        records = {r[f"{kind}s/id"].decode(): r for r in found.records(f"{kind}s")}
        assert set(records) == set(wanted)
        for key, sample in wanted.items():
            pixels = np.asarray(records[key][f"{kind}s/{kind}"])
            assert np.array_equal(pixels, read_pair(sample)[index])
    rows = list(found.records("rows"))
    assert {row["rows/height"] for row in rows} == {24} and len(rows) == NUM_SAMPLES
    table = {r["table/id"].decode(): r["table/condition"].decode() for r in found.records("table")}
    assert table == {key: sample.row["condition"] for key, sample in wanted.items()}


def test_sample_is_small_and_of_all_conditions(
    pack: Callable[..., Path], tiny_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    large = tiny_dataset(60, 8, 16, conditions=("fog", "rain", "night"))
    samples = open_dataset(pack(data=large) / "sample", labelled=True)
    assert len(samples) == 6
    assert {s.row["condition"] for s in samples} == {"fog", "rain", "night"}
    assert not (pack("--sample-mb", 0, data=large, output=tmp_path / "bare") / "sample").exists()


def test_card_states_licences_scores_and_nothing_active(
    pack: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    from huggingface_hub import DatasetCard

    shutil.copytree(data, scored := tmp_path / "scored")
    fidelity = {"a|b": {"miou": 41.25, "ceiling_miou": 60.0, "share_of_ceiling": None}}
    group = {"images": 12, "fidelity": fidelity}
    summary = {"all": group, "conditions": {"fog": group}, "warning": "<b>No number</b>"}
    (scored / "quality").mkdir()
    (scored / "quality/summary.json").write_text(json.dumps(summary))
    flags = ["--name", "Fog <script>", "--licence", "cc-by-4.0"]
    folder = pack(*flags, "--licences", "base model=Open RAIL-M", "maps=GTA [x](y)", data=scored)
    text = (folder / "README.md").read_text()
    card = DatasetCard(text)
    assert card.data.license == "cc-by-4.0" and card.data.pretty_name == "Fog <script>"
    body = card.text
    assert "<script>" not in body and "<b>" not in body and "[x](y)" not in body
    assert "| base model | Open RAIL-M |" in body
    assert licence_chain([], {"config": {"models": {"base": "x"}}})[0][0] == "base model"
    assert re.search(r"\| fog \| 4 \|", body) and "| all | 12 | 41.2 | 60.0 | - |" in body
    assert (folder / "quality/summary.json").read_text() == json.dumps(summary)
    for line in body.splitlines():
        assert not line.startswith("| ") or line.count(" | ") >= 1


@pytest.mark.parametrize("number", [1, 3, 8, 20])
def test_stopped_release_is_continued_and_never_half_there(
    number: int, pack: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = content(pack("--formats", *ALL, output=tmp_path / "whole"))
    with monkeypatch.context() as patch:
        stop_at(patch, number)
        with pytest.raises(KeyboardInterrupt):
            pack("--formats", *ALL)
    assert not (tmp_path / "set").exists()
    assert content(pack("--formats", *ALL)) == whole
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "set").rglob("*")}
    pack("--formats", *ALL)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "set").rglob("*")} == before


def test_other_settings_begin_a_stopped_release_again(
    pack: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            pack("--split", "val")
    folder = pack()
    assert "started again" in capsys.readouterr().err
    assert not any("val" in name for name in content(folder))


def test_unlabelled_collections_are_released(
    pack: Callable[..., Path], tiny_dataset: Callable[..., Path]
) -> None:
    folder = pack(data=tiny_dataset(3, 8, 8, labelled=False))
    assert [s.label for s in open_dataset(folder, labelled=False)] == [None] * 3
    with pytest.raises(UserError, match="has no label"):
        pack("--formats", "fiftyone", data=tiny_dataset(3, 8, 8, labelled=False), output="x")


def test_label_of_a_palette_has_the_hash_of_its_member(
    pack: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    from PIL import Image

    shutil.copytree(data, tmp_path / "palette")
    path = open_dataset(tmp_path / "palette", labelled=True)[0].label
    image = Image.fromarray(labels.read_label(path), mode="P")
    image.putpalette(np.pad(labels.PALETTE, ((0, 237), (0, 0))).tobytes())
    image.save(path)
    rows = [json.loads(line) for line in (tmp_path / "palette/metadata-000.jsonl").open()]
    for row in rows:
        row.pop("row_sha256")
        row.pop("label_sha256")
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "palette/metadata-000.jsonl").write_text(lines)
    sample = open_dataset(pack(data=tmp_path / "palette"), labelled=True)[0]
    from pipeline.images import read_file

    assert files.sha256(read_file(sample.label)) == sample.row["label_sha256"]
