"""The dataset folder: commit order, torn tails, other runs, checks."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline import files, images
from pipeline.dataset import Sample, check_dataset, open_dataset, read_pair
from pipeline.dataset_writer import DatasetWriter, write_card
from pipeline.errors import UserError
from pipeline.metadata import read_rows

IMAGE = np.zeros((4, 6, 3), dtype=np.uint8)
LABEL = np.zeros((4, 6), dtype=np.uint8)


def test_what_is_written_is_read_back(tiny_dataset: Callable[..., Path]) -> None:
    samples = open_dataset(tiny_dataset(3, 16, 32, conditions=("fog", "rain")), labelled=True)
    check_dataset(samples)
    assert [s.id for s in samples] == ["00000000", "00000001", "00000002"]
    assert [s.row["condition"] for s in samples] == ["fog", "rain", "fog"]
    image, label = read_pair(samples[0])
    assert image.shape == (16, 32, 3) and label.shape == (16, 32)
    assert samples[0].image.stem == samples[0].label.stem
    assert samples[0].row["image_sha256"] == files.sha256(samples[0].image.read_bytes())
    assert samples[0].row["label_sha256"] == files.sha256(samples[0].label.read_bytes())


def test_commit_order_is_label_image_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = DatasetWriter(tmp_path / "d", config={})
    order: list[str] = []
    replace, append = files.os.replace, writer.append_rows
    monkeypatch.setattr(
        files.os, "replace", lambda a, b: (order.append(b.parts[-3]), replace(a, b))
    )
    monkeypatch.setattr(writer, "append_rows", lambda rows: (order.append("row"), append(rows)))
    writer.write(0, IMAGE, LABEL, {})
    assert order == ["labels", "images", "row"]


def test_files_without_a_row_do_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = DatasetWriter(tmp_path / "d", config={})
    writer.write(0, IMAGE, LABEL, {})

    def killed(rows: list[dict]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "append_rows", killed)
    with pytest.raises(KeyboardInterrupt):
        writer.write(1, IMAGE, LABEL, {})
    assert [s.id for s in open_dataset(tmp_path / "d", labelled=True)] == ["00000000"]


def test_torn_tail_is_ignored_by_readers_and_cut_by_the_next_writer(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    DatasetWriter(folder, config={}).write(0, IMAGE, LABEL, {})
    path = folder / "metadata-000.jsonl"
    with open(path, "ab") as handle:
        handle.write(b'{"id": "00000001", "sta')
    assert list(read_rows(folder)) == ["00000000"]
    writer = DatasetWriter(folder, config={})
    writer.write(1, IMAGE, LABEL, {})
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == [
        "00000000",
        "00000001",
    ]


def test_broken_row_in_the_middle_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text('{"id": "a", "image_file_name": "a.png"}\nbroken\n\n')
    with pytest.raises(UserError, match="metadata.jsonl:2: broken row"):
        read_rows(tmp_path)


def test_folder_of_another_run_is_refused_with_the_difference(tmp_path: Path) -> None:
    DatasetWriter(tmp_path / "d", config={"seed": 1, "x": {"y": 2}})
    with pytest.raises(UserError, match=r"holds another run \(seed: 1 -> 3\)"):
        DatasetWriter(tmp_path / "d", config={"seed": 3, "x": {"y": 2}})
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="holds thesis.txt and has no run.json"):
        DatasetWriter(tmp_path / "e", config={})


def test_ok_row_wins_over_a_failed_one_and_processes_add_up(tmp_path: Path) -> None:
    first = DatasetWriter(tmp_path / "d", config={})
    first.write_failure(0, "black image", {})
    first.write(2, IMAGE, LABEL, {})
    second = DatasetWriter(tmp_path / "d", config={}, process_index=1)
    second.write(0, IMAGE, LABEL, {})
    second.write_failure(3, "black image", {})
    assert second.done_ids() == {"00000000", "00000002"}
    assert len(open_dataset(tmp_path / "d", labelled=True)) == 2


def test_missing_things_are_named(tmp_path: Path, tiny_dataset: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="no such dataset folder"):
        open_dataset(tmp_path / "none", labelled=True)
    with pytest.raises(UserError, match="no metadata.jsonl"):
        open_dataset(tmp_path, labelled=True)
    with pytest.raises(UserError, match="has no label"):
        open_dataset(tiny_dataset(1, 8, 8, labelled=False), labelled=True)
    DatasetWriter(tmp_path / "d", config={}).write_failure(0, "x", {})
    with pytest.raises(UserError, match="holds no finished sample"):
        open_dataset(tmp_path / "d", labelled=True)


def test_size_mismatch_and_truncated_image_are_found_by_the_check(tmp_path: Path) -> None:
    writer = DatasetWriter(tmp_path / "d", config={})
    writer.write(0, IMAGE, LABEL[:2], {})
    samples = open_dataset(tmp_path / "d", labelled=True)
    for function in (lambda: check_dataset(samples), lambda: read_pair(samples[0])):
        with pytest.raises(UserError, match="label is 6x2 but its image is 6x4"):
            function()
    samples[0].image.write_bytes(b"\x89PNG\r\n")
    with pytest.raises(UserError, match="not a readable image"):
        check_dataset(samples)
    samples[0].image.unlink()
    with pytest.raises(UserError, match="no such file"):
        check_dataset(samples)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_image_cut_in_half_is_found_by_the_check(tmp_path: Path, kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    path = tmp_path / f"a.{kind.lower()}"
    Image.fromarray(noise).save(path, format=kind)
    sample, whole = Sample("a", path, None, {}), path.read_bytes()
    check_dataset([sample])
    for padding in (8, 4096):  # some cameras and disks fill up
        path.write_bytes(whole + bytes(padding))
        check_dataset([sample])
    for length in (len(whole) // 2, len(whole) - 40):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"a\.\w+: not a readable image.*re-create") as caught:
            check_dataset([sample])
        assert "\n" not in str(caught.value)


def test_whole_images_are_not_decoded_by_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("png", "jpeg"):
        Image.fromarray(IMAGE).save(tmp_path / f"a.{kind}")
    monkeypatch.setattr(images, "_decoder", lambda data: pytest.fail("decoded"))
    check_dataset([Sample("a", path, None, {}) for path in tmp_path.iterdir()])


def test_card_opens_with_what_the_hub_reads(tmp_path: Path) -> None:
    write_card(tmp_path, "Title: of a set", " text ")
    empty, header, text = (tmp_path / "README.md").read_text().split("---\n")
    assert (empty, text) == ("", "# Title: of a set\n\ntext\n")
    found = yaml.safe_load(header)
    assert found["pretty_name"] == "Title: of a set" and found["license"] == "other"
    assert "metadata-063.jsonl" in found["configs"][0]["metadata_filenames"]


def test_labels_that_are_void_alone_are_refused(tiny_dataset: Callable[..., Path]) -> None:
    folder = tiny_dataset(3, 8, 16)
    samples = open_dataset(folder, labelled=True)
    check_dataset(samples)
    for sample in samples[1:]:
        assert sample.label is not None
        Image.new("L", (16, 8), 255).save(sample.label)
    check_dataset(open_dataset(folder, labelled=True))  # one of them is enough
    assert samples[0].label is not None
    Image.new("L", (16, 8), 255).save(samples[0].label)
    with pytest.raises(UserError, match="no pixel is of a class, all are void.*--label-space"):
        check_dataset(open_dataset(folder, labelled=True))
