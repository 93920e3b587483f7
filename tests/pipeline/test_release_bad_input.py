"""Releases and their downloads with bad settings, sums, names and links: one line, nothing lost."""

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import checksums, download
from pipeline.dataset import open_dataset
from pipeline.errors import UserError
from pipeline.metadata import read_rows
from tests.pipeline.releases import content
from tests.pipeline.releases import data as data
from tests.pipeline.releases import fetch as fetch
from tests.pipeline.releases import pack as pack


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--sample-mb", "101"), "must be in 0..100"),
        (("--push", "streets"), "must be OWNER/NAME"),
        (("--upload", "True"), "needs --push"),
        (("--split", "Val 1"), "must be small letters"),
        (("--licences", "base model"), "must be PART=LICENCE"),
        (("--date", "today"), "must be a day"),
        (("--date", "2027-02-30"), "must be a day"),
        (("--formats", "webdataset", "webdataset"), "each of them once"),
        (("--quality", "nowhere"), "has no summary.json"),
    ],
)
def test_bad_settings_are_one_line(
    flags: tuple[str, ...], message: str, pack: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        pack(*flags)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "set").exists()


def test_bad_places_are_refused(pack: Callable[..., Path], data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lies in DATA"):
        pack(output=data / "set")
    with pytest.raises(UserError, match="no such dataset folder"):
        pack(data=tmp_path / "nothing")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    with pytest.raises(UserError, match="holds thesis.txt and has no release.json"):
        pack(output=tmp_path / "mine")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        pack(output=tmp_path / "file")
    with pytest.raises(UserError, match="nosuch"):
        pack(output="nosuch://bucket/set")
    with pytest.raises(UserError, match="chains of file systems"):
        pack(output="memory://set::file:///etc")
    pack()
    with pytest.raises(UserError, match="holds another release"):
        pack("--version", "2.0.0")
    assert (tmp_path / "mine/thesis.txt").read_text() == "x"


SUMS = "0" * 64
BAD_SUMS = {
    f"{SUMS}  ../x": "must be a plain path",
    f"{SUMS}  /etc/x": "not a plain relative path",
    f"{SUMS}  a\n{SUMS}  a": "twice",
    f"{SUMS}  {checksums.NAME}": "itself",
    f"{SUMS}  x.tar.part-1-ab": "name of an unfinished file",
    f"{SUMS}  x.part/y": "name of an unfinished file",
    f"{SUMS}  a/b/c\n{SUMS}  ab\n{SUMS}  a": "names the file a and below that name a/b/c",
    f"{SUMS}  {checksums.NAME}/x": f"names the file {checksums.NAME} and below that name",
    f"{SUMS}  http:/127.0.0.1/x": "not a plain relative path",
    "<html>": "not a line of `sha256sum`",
    "": "names no file",
}


@pytest.mark.parametrize("text", BAD_SUMS)
def test_bad_sums_are_refused(text: str, fetch: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / checksums.NAME).write_text(text)
    with pytest.raises(UserError, match=re.escape(BAD_SUMS[text])) as caught:
        fetch(tmp_path / "set")
    assert "\n" not in str(caught.value) and not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--release", "http://example.org/x"), "needs https"),
        (("--release", "x", "--dataset", "gta"), "give one of the two"),
        (("--dataset", "gta", "--only", "x"), "released sets only"),
        (("--release", "x", "--revision", "a" * 40), "--revision: has no meaning"),
        (("--release", "x", "--sha256", "1"), "64 hexadecimal"),
        (("--release", "no/such"), "no such folder"),
        (("--release", "."), "no such file; is its folder a release"),
    ],
)
def test_bad_downloads_are_one_line(
    flags: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["download.py", *flags, "--output", str(tmp_path / "back")]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(UserError, match=message) as caught:
        download.main()
    assert "\n" not in str(caught.value)


def test_members_that_lead_elsewhere_are_refused(pack: Callable[..., Path], tmp_path: Path) -> None:
    folder = pack()
    (tmp_path / "secret.tar").write_bytes(b"x" * 4096)
    rows = (folder / "metadata.jsonl").read_text()
    for place in ("../secret.tar", "webdataset/../../secret.tar"):
        (folder / "metadata.jsonl").write_text(rows.replace("webdataset/train-000000.tar", place))
        with pytest.raises(UserError, match="plain path below the folder"):
            read_rows(folder)
    shard = folder / "webdataset/train-000000.tar"
    (folder / "metadata.jsonl").write_text(rows)
    shard.unlink()
    shard.symlink_to(tmp_path / "secret.tar")
    with pytest.raises(UserError, match="leads out of the dataset folder"):
        open_dataset(folder, labelled=True)


@pytest.mark.parametrize("name", ["quality/summary.md", "quality/summary.json", "run.json"])
def test_links_of_the_data_publish_no_file_of_this_machine(
    name: str, pack: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "secret").write_text('{"config": {}}')
    path = tmp_path / "data" / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="leads out of the dataset folder"):
        pack(data=tmp_path / "data")
    assert not (tmp_path / "set").exists()


def test_data_in_the_place_of_a_stopped_release_stay(
    pack: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    shutil.copytree(data, tmp_path / "set.packing")
    (tmp_path / "set.packing/release.json").write_text("{}")
    before = content(tmp_path / "set.packing")
    with pytest.raises(UserError, match="lies in DATA"):
        pack(data=tmp_path / "set.packing")
    with pytest.raises(UserError, match="choose another --work"):
        pack(data=tmp_path, output="memory://bucket/set")
    assert content(tmp_path / "set.packing") == before


def test_downloads_of_others_stay(
    pack: Callable[..., Path], fetch: Callable[..., Path], tmp_path: Path
) -> None:
    folder = pack()
    archive = tmp_path / "back.downloads/images.zip"
    archive.parent.mkdir()
    archive.write_text("x")
    with pytest.raises(UserError, match="images.zip: is no file of a released set"):
        fetch(folder)
    assert archive.read_text() == "x"
    shutil.rmtree(archive.parent)
    place = folder.rename(archive.parent)
    before = content(place)
    for output in (tmp_path / "back", place / "inside"):
        with pytest.raises(UserError, match="lies in --release"):
            fetch(place, "--only", "sample/*", output=output)
    assert content(place) == before
