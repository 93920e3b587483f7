"""Rows of strangers: every program that reads them stays in the folder and says one line."""

import hashlib
import importlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import dataset, dataset_writer, errors, rows
from pipeline.dataset import open_dataset
from pipeline.errors import UserError
from pipeline.metadata import choose, read_rows, scan_rows
from pipeline.metadata_index import MetadataIndex
from pipeline.paths import STORES_VARIABLE, check_relative
from pipeline.reading import read_bytes, read_json
from tests.pipeline.row_files import folder as folder
from tests.pipeline.row_files import write_rows

ROOT = Path(__file__).resolve().parent.parent.parent
FORMATS = (
    "mmseg", "dginstyle", "webdataset", "imagefolder", "parquet", "coco_panoptic", "fiftyone",
)  # fmt: skip
PROGRAMS = {
    **{
        f"export {kind}": ("pipeline.export", f"--data D --output O --workers 1 --format {kind}")
        for kind in FORMATS
    },
    "generation": ("generation.run", "--label-maps D --n 1 --output O --dry-run"),
    "training": (
        "segtrain.train",
        f"{ROOT}/configs/segtrain/segformer_pocket.py --source D --output O",
    ),
    "fine-tuning": ("finetune.unet", "--data D --output O"),
    "merge": ("pipeline.merge", "--data D"),
}


@pytest.fixture
def call(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], tuple[int, str]]:
    """A function that runs a program on the set; returns exit code and what it says on stderr."""

    def run(name: str) -> tuple[int, str]:
        module, line = PROGRAMS[name]
        places = {"D": str(folder), "O": str(folder.parent / "output")}
        argv = [module, *(places.get(word, word) for word in line.split())]
        monkeypatch.setattr(sys, "argv", argv)
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            errors.guard(importlib.import_module(module).main)
        return left.value.code, capsys.readouterr().err

    return run


def refused(found: tuple[int, str], message: str) -> None:
    """Check for exit code 2 and a single line that names the file."""
    code, text = found
    lines = [line for line in text.splitlines() if not line.startswith("notice: ")]
    assert code == 2 and len(lines) == 1, found
    assert lines[0].startswith("streetforge: ") and re.search(message, lines[0]), lines[0]


def change(folder: Path, **values: Any) -> None:
    """Change the first row; None takes a field away."""
    first, *rest = (folder / "metadata.jsonl").read_text().splitlines()
    row = {k: v for k, v in (json.loads(first) | values).items() if v is not None}
    write_rows(folder, [row, *rest])


DEEP = "[" * 100_000 + "]" * 100_000
ROWS: dict[str, tuple[Any, str]] = {
    "image outside": ({"image_file_name": "../outside/image.png"}, "unfit image_file_name"),
    "image far outside": ({"image_file_name": "images/../../outside/image.png"}, "image_file_name"),
    "image absolute": ({"image_file_name": "ABSOLUTE"}, "unfit image_file_name"),
    "image of a Windows path": ({"image_file_name": r"images\\00000000.png"}, "image_file_name"),
    "image of a drive": ({"image_file_name": "C:/images/a.png"}, "image_file_name"),
    "image in a home": ({"image_file_name": "~/a.png"}, "image_file_name"),
    "image with a zero": ({"image_file_name": "images/a\0.png"}, "image_file_name"),
    "image empty": ({"image_file_name": ""}, "image_file_name"),
    "image long": ({"image_file_name": "a/" * 2000 + "a.png"}, "longer than"),
    "image missing": ({"image_file_name": None}, "has no image_file_name"),
    "image a number": ({"image_file_name": 7}, "must be text, not 7"),
    "image a list": ({"image_file_name": ["a"]}, "must be text"),
    "image not there": ({"image_file_name": "images/no.png"}, "no.png: image .* is missing"),
    "image a folder": ({"image_file_name": "images"}, "images: image .* is a folder"),
    "label outside": ({"label_file_name": "../outside/label.png"}, "unfit label_file_name"),
    "label a list": ({"label_file_name": ["a"]}, "unfit label_file_name"),
    "label true": ({"label_file_name": True}, "unfit label_file_name"),
    "id a number": ({"id": 0}, "unfit id: must be text, not 0"),
    "id a list": ({"id": [1]}, "unfit id"),
    "id an object": ({"id": {}}, "unfit id"),
    "id a path": ({"id": "../../outside/pwn"}, "unfit id"),
    "id absolute": ({"id": "/outside/pwn"}, "unfit id"),
    "id hidden": ({"id": ".."}, "unfit id"),
    "id empty": ({"id": ""}, "unfit id"),
    "id of 300 letters": ({"id": "a" * 300}, "unfit id: .* longer than 150"),
    "id of two lines": ({"id": "a\nb"}, "unfit id"),
    "status a list": ({"status": ["ok"]}, "status other than"),
    "status unknown": ({"status": "fine"}, "status other than"),
    "prompt a number": ({"prompt": 3}, "unfit prompt: must be text"),
    "condition a list": ({"condition": ["fog"]}, "unfit condition"),
    "class pixels short": ({"class_pixels": [1]}, "unfit class_pixels"),
    "class pixels negative": ({"class_pixels": [-1] * 19}, "unfit class_pixels"),
    "hash no hash": ({"image_sha256": "x"}, "unfit image_sha256"),
    "width text": ({"width": "8"}, "unfit width"),
    "width true": ({"width": True}, "unfit width"),
    "deep value": ("DEEP VALUE", "nested more than"),
    "deep row": (DEEP, "nested more than"),
    "list": ("[1]", "holds list"),
    "no JSON": ("{'id': 1}", "is not a row in JSON"),
    "not UTF-8": ("\udcff", "UTF-8"),
    "half a character": (r'{"id": "\ud800", "image_file_name": "a.png"}', "half of a character"),
    "key twice": ('{"id": "a", "id": "b", "image_file_name": "a.png"}', "occurs twice"),
    "imagefolder": ('{"file_name": "images/00000000.png"}', "has no id, as those of a Hugging"),
}


@pytest.mark.parametrize("name", ["export mmseg", "generation", "training", "fine-tuning", "merge"])
@pytest.mark.parametrize("kind", ROWS)
def test_bad_rows_are_one_line(kind: str, name: str, folder: Path, call: Callable) -> None:
    value, message = ROWS[kind]
    if isinstance(value, dict):
        whole = {"ABSOLUTE": str(folder.parent / "outside/image.png")}
        change(
            folder, **{k: whole.get(v, v) if isinstance(v, str) else v for k, v in value.items()}
        )
        if None in value.values():
            message = "has no image_file_name"
    else:
        row = f'{{"id": "a", "image_file_name": "a.png", "x": {DEEP}}}'
        lines = [row if value == "DEEP VALUE" else value]
        lines += (folder / "metadata.jsonl").read_text().splitlines()
        text = "".join(f"{line}\n" for line in lines)
        (folder / "metadata.jsonl").write_bytes(text.encode(errors="surrogateescape"))
    if name == "merge" and ("not there" in kind or "a folder" in kind):
        return  # it reads rows, not files
    before = snapshot(folder)
    refused(call(name), message)
    assert snapshot(folder) == before and not (folder.parent / "output").exists()


def snapshot(folder: Path) -> dict[str, str]:
    """Hash of each file below a folder; links, pipes and folders by their kind."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        if p.is_file()
        else oct(p.lstat().st_mode)
        for p in sorted(folder.rglob("*"))
    }


def link_out(path: Path, target: Path) -> None:
    path.unlink()
    path.symlink_to(target)


def link_folder(folder: Path) -> None:
    for top in ("images", "labels"):
        shutil.copytree(folder / top, folder.parent / f"outside/{top}")
        shutil.rmtree(folder / top)
        (folder / top).symlink_to(f"../outside/{top}")


IMAGE, LABEL = "images/00000000.png", "labels/00000000.png"
FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "image a link outside": (
        lambda d: link_out(d / IMAGE, d.parent / "outside/image.png"), "leads out of the dataset"),
    "label a link outside": (
        lambda d: link_out(d / LABEL, d.parent / "outside/label.png"), "leads out of the dataset"),
    "image a link to passwd": (lambda d: link_out(d / IMAGE, Path("/etc/passwd")), "leads out"),
    "label a link to passwd": (lambda d: link_out(d / LABEL, Path("/etc/passwd")), "leads out"),
    "image a link to a device": (lambda d: link_out(d / IMAGE, Path("/dev/zero")), "leads out"),
    "image a link to nothing": (lambda d: link_out(d / IMAGE, d / "gone.png"), "is missing"),
    "image a link to itself": (lambda d: link_out(d / IMAGE, d / IMAGE), "00000000.png"),
    "folders are links": (link_folder, "leads out of the dataset"),
    "image a pipe": (lambda d: ((d / IMAGE).unlink(), os.mkfifo(d / IMAGE)), "is a pipe"),
    "label a pipe": (lambda d: ((d / LABEL).unlink(), os.mkfifo(d / LABEL)), "is a pipe"),
    "image text": (lambda d: (d / IMAGE).write_text("text"), "not a readable image"),
    "label text": (lambda d: (d / LABEL).write_text("text"), "not a readable"),
    "image cut": (lambda d: os.truncate(d / IMAGE, 50), "is truncated"),
    "image empty": (lambda d: os.truncate(d / IMAGE, 0), "is empty"),
    "label of another size": (
        lambda d: Image.new("L", (8, 8)).save(d / LABEL), "label is 8x8 but its image is 64x32"),
    "metadata a folder": (
        lambda d: ((d / "metadata.jsonl").unlink(), (d / "metadata.jsonl").mkdir()), "is a folder"),
    "metadata a pipe": (
        lambda d: ((d / "metadata.jsonl").unlink(), os.mkfifo(d / "metadata.jsonl")), "is a pipe"),
    "metadata a link to nothing": (
        lambda d: link_out(d / "metadata.jsonl", d / "gone"), "metadata.jsonl: is missing"),
    "metadata a link outside": (
        lambda d: link_out(d / "metadata.jsonl", Path("/etc/passwd")), "leads out of the dataset"),
    "metadata empty": (
        lambda d: (d / "metadata.jsonl").write_text(""), "holds no finished sample|no row"),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("kind", FILES)
def test_bad_files_are_one_line(kind: str, name: str, folder: Path, call: Callable) -> None:
    spoil, message = FILES[kind]
    if name == "merge" and not kind.startswith("metadata"):
        return  # it reads rows, not files
    if name == "generation" and kind in ("image text", "image cut", "image empty"):
        return  # it needs no image
    spoil(folder)
    if name == "generation" and kind == "label of another size":
        message = "smaller than the crop"
    refused(call(name), message)
    assert not (folder.parent / "output").exists() or not [
        p for p in (folder.parent / "output").rglob("*") if p.suffix in (".png", ".tar", ".parquet")
    ]


@pytest.mark.parametrize("name", ["export mmseg", "generation", "training", "merge"])
@pytest.mark.parametrize("kind", ["metadata.jsonl", IMAGE])
def test_unreadable_files_are_one_line(
    kind: str, name: str, folder: Path, call: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == IMAGE and name in ("generation", "merge"):
        return  # they need no image
    real = os.open

    def refuse(path: Any, *arguments: Any, **options: Any) -> int:
        if str(path) == str(folder / kind):  # the tests may run as root, who may read all
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    refused(call(name), f"{kind}: cannot be read .Permission denied.")


def test_links_inside_and_into_declared_stores_work_and_keep_the_listed_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    inside = folder / "blobs/0"
    inside.parent.mkdir()
    (folder / IMAGE).rename(inside)
    (folder / IMAGE).symlink_to("../blobs/0")
    assert open_dataset(folder, labelled=True)[0].image == folder / IMAGE
    for store, home in (
        ("hub/blobs", "hub/snapshots/abc"),
        ("dvc/.dvc/cache/files/md5", "dvc/data/set"),
        ("annex/.git/annex/objects/a", "annex/set"),
        ("declared", "anywhere/set"),
    ):
        (tmp_path / store).mkdir(parents=True)
        shutil.copytree(folder, tmp_path / home, symlinks=True)
        target = tmp_path / store / "4f2a"
        shutil.copy(inside, target)
        link_out(tmp_path / home / IMAGE, target)
        if store == "declared":
            with pytest.raises(UserError, match=f"name the folder .*{STORES_VARIABLE}"):
                open_dataset(tmp_path / home, labelled=True)
            monkeypatch.setenv(STORES_VARIABLE, f"/nowhere:{tmp_path / store}")
        samples = open_dataset(tmp_path / home, labelled=True)
        assert samples[0].image == tmp_path / home / IMAGE and samples[0].image.suffix == ".png"
        dataset.check_dataset(samples)


def test_a_store_that_is_a_link_itself_holds_nothing(folder: Path, tmp_path: Path) -> None:
    home = tmp_path / "hub/snapshots/abc"
    shutil.copytree(folder, home)
    (tmp_path / "hub/blobs").symlink_to(tmp_path / "outside")
    link_out(home / IMAGE, tmp_path / "hub/blobs/image.png")
    with pytest.raises(UserError, match="leads out of the dataset"):
        open_dataset(home, labelled=True)


def test_two_images_of_one_id_are_refused(folder: Path) -> None:
    change(folder, id="00000001")
    with pytest.raises(UserError, match="another row has the id 00000001 too"):
        open_dataset(folder, labelled=True)


def test_a_last_line_without_newline_counts_if_it_is_whole(folder: Path) -> None:
    path = folder / "metadata.jsonl"
    path.write_text(path.read_text().rstrip("\n"))
    assert len(open_dataset(folder, labelled=True)) == 2
    path.write_text(path.read_text().replace('"00000001"', "1"))
    with pytest.raises(UserError, match="unfit id"):
        open_dataset(folder, labelled=True)
    path.write_text(path.read_text()[:-20])
    assert len(open_dataset(folder, labelled=True)) == 1


def test_what_is_checked_is_not_read_again_until_it_changes(
    tiny_dataset: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, read = tiny_dataset(4, 8, 12), []
    real = dataset.check_sample
    monkeypatch.setattr(dataset, "check_sample", lambda s: (read.append(s.id), real(s)))

    def checked() -> list[str]:
        read.clear()
        dataset.check_dataset(open_dataset(folder, labelled=True))
        return sorted(read)

    assert len(checked()) == 4 and checked() == []
    label = open_dataset(folder, labelled=True)[1].label
    assert label is not None
    os.utime(label, ns=(0, label.stat().st_mtime_ns + 1))
    assert checked() == ["00000001"] and checked() == []
    image = open_dataset(folder, labelled=True)[2].image
    Image.fromarray(np.zeros((8, 12, 3), np.uint8)).save(image)
    assert checked() == ["00000002"] and checked() == []
    config = read_json(folder / "run.json")["config"]
    writer = dataset_writer.DatasetWriter(folder, config=config)
    writer.write(9, np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8), {})
    assert checked() == ["00000009"]
    monkeypatch.setenv("RANK", "1")
    os.truncate(label, 0)
    assert checked() == []  # another process does it
    monkeypatch.delenv("RANK")
    with pytest.raises(UserError, match="is empty"):
        checked()
    for damage in ("[]", '{"version": 1, "samples": [1]}', "\xff"):
        (folder / "checked.json").write_text(damage, encoding="latin-1")
        with pytest.raises(UserError, match="is empty"):
            checked()


def test_a_folder_of_others_gets_no_file(folder: Path) -> None:
    before = snapshot(folder)
    dataset.check_dataset(open_dataset(folder, labelled=True))
    assert snapshot(folder) == before


@pytest.mark.parametrize("name", ["http:/127.0.0.1/x.tar/0-9/a.png", "s3://bucket/a.png"])
def test_no_name_is_an_address(name: str) -> None:
    with pytest.raises(ValueError, match="plain"):
        check_relative(name)


def test_member_of_a_chain_of_file_systems_is_not_read() -> None:
    with pytest.raises(UserError, match="chains of file systems are not read"):
        read_bytes(Path("memory://set/a::file:/etc/x.tar/0-9/a.png"))


@pytest.mark.parametrize(
    ("written", "counts"),
    [
        ([{}], 0),
        ([{"status": "ok"}], 0),
        ([{"status": "failed"}], None),
        ([{"status": "failed"}, {}], 1),
        ([{}, {"status": "failed"}], 0),
        ([{"status": "ok"}, {}], 0),
        ([{"status": "failed"}, {"status": "withdrawn"}], None),
    ],
)
def test_every_reader_means_the_same_by_a_missing_status(
    tmp_path: Path, written: list[dict[str, str]], counts: int | None
) -> None:
    """A row without status is a finished sample, and the first finished row of a sample counts."""
    row = {"id": "00000000", "image_file_name": "a.png"}
    lines = [{**row, **more, "seed": number} for number, more in enumerate(written)]
    write_rows(tmp_path, lines)
    kept = read_rows(tmp_path)["00000000"]
    assert choose(scan_rows(tmp_path).rows["00000000"]) == kept
    index = MetadataIndex(tmp_path, 1)
    index.update()
    assert index.missing() == ([0] if counts is None else [])
    assert rows.is_ok(kept) == (counts is not None)
    assert kept["seed"] == (len(lines) - 1 if counts is None else counts)


@pytest.mark.parametrize("line", ['{"id": "x"', '{"id": "00000000", "status": "odd"}'])
def test_every_reader_gives_the_same_remedy_for_a_broken_row(tmp_path: Path, line: str) -> None:
    (tmp_path / "run.json").write_text("{}")
    write_rows(tmp_path, [line])
    for read in (read_rows, lambda folder: MetadataIndex(folder, 1).update()):
        with pytest.raises(UserError, match="broken row, it|broken row .*, it") as caught:
            read(tmp_path)
        assert str(caught.value).endswith(f"run pipeline/verify.py --data {tmp_path} --repair")
