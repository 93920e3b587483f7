"""Releases: packed, read without unpacking, sent to stores and brought back, stopped, refused."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import checksums, download, export, files, labels, release, remote_files
from pipeline.dataset import check_dataset, find_images, open_dataset, read_pair
from pipeline.errors import UserError
from pipeline.exports.release_card import licence_chain
from pipeline.metadata import read_rows
from tests.pipeline.loopback import Page, Server

ALL = ("webdataset", "parquet", "coco_panoptic", "fiftyone")
NUM_SAMPLES = 12


@pytest.fixture(scope="module")
def data(tiny_dataset: Callable[..., Path]) -> Path:
    """Twelve labelled samples of three conditions."""
    return tiny_dataset(NUM_SAMPLES, 24, 40, conditions=("fog", "rain", "night"))


@pytest.fixture
def pack(monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path) -> Callable[..., Path]:
    """A function that releases a folder in this process, five samples to a shard."""

    def call(*flags: object, data: object = data, output: object = tmp_path / "set") -> Any:
        argv = [data, "--output", output, "--shard-samples", 5, "--workers", 1, *flags]
        argv += ["--work", tmp_path / "work"]
        monkeypatch.setattr(sys, "argv", ["release.py", *map(str, argv)])
        assert release.main() is None
        return output

    return call


@pytest.fixture
def fetch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """A function that downloads a release in this process."""

    def call(address: object, *flags: object, output: Path = tmp_path / "back") -> Path:
        argv = ["--release", address, "--output", output, *flags]
        monkeypatch.setattr(sys, "argv", ["download.py", *map(str, argv)])
        assert download.main() == 0
        return output

    return call


def content(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file below a folder, but for the proof that readers leave."""
    paths = (p for p in folder.rglob("*") if p.is_file() and p.name != "checked.json")
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(paths)}


def assert_same_samples(release_folder: Path | str, data: Path) -> None:
    """Check that a release gives the samples of the folder that it was made of."""
    found, wanted = (open_dataset(f, labelled=True) for f in (release_folder, data))
    assert [s.id for s in found] == [s.id for s in wanted]
    for one, other in zip(found, wanted, strict=True):
        for a, b in zip(read_pair(one), read_pair(other), strict=True):
            assert np.array_equal(a, b)
        for key in ("condition", "prompt", "image_sha256", "label_sha256", "class_pixels"):
            assert one.row[key] == other.row[key]


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


def test_card_tells_licences_scores_and_nothing_active(
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


def stop_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let the process be interrupted at the n-th file that takes its name."""
    replace, calls = os.replace, []

    def stopping(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == number:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", stopping)


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


def test_other_settings_begin_a_stopped_release_anew(
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


def serve(server: Server, folder: Path, cuts: dict[str, list[int]]) -> str:
    """Put the files of a folder on the loopback server; return its address."""
    for name, data in content(folder).items():
        server.pages[f"/set/{name}"] = Page(data, cuts=cuts.get(name, []))
    return server.address("/set")


def test_round_trip_over_http_is_continued_and_identical(
    server: Server, pack: Callable[..., Path], fetch: Callable[..., Path], data: Path
) -> None:
    folder, shard = pack("--formats", *ALL), "webdataset/train-000000.tar"
    address = serve(server, folder, {shard: [5000, 0, 0, 0, 0, 0, 0]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.sleep", lambda _: None)
        with pytest.raises(UserError, match="run the same command again later"):
            fetch(address)
    assert not (folder.parent / "back").exists()
    server.log.clear()
    back = fetch(address)
    assert content(back) == content(folder)
    assert (f"/set/{shard}", "bytes=5000-") in server.log
    assert len(server.log) < len(server.pages)  # what was there was not sent again
    assert_same_samples(back, data)
    assert fetch(address) == back  # complete already
    assert [p.name for p in folder.parent.iterdir() if p.name.startswith("back")] == ["back"]


def test_changed_files_are_found(
    server: Server, pack: Callable[..., Path], fetch: Callable[..., Path]
) -> None:
    folder = pack()
    address = serve(server, folder, {})
    server.pages["/set/metadata.jsonl"].data = b'{"id": "0"}\n'
    with pytest.raises(UserError, match=r"metadata.jsonl: has sha256"):
        fetch(address)
    with pytest.raises(UserError, match="SHA256SUMS: has sha256"):
        fetch(address, "--sha256", "0" * 64)
    with pytest.raises(UserError, match="answered 404.*check the address of the release"):
        fetch(address + "/nowhere")
    good = hashlib.sha256((folder / checksums.NAME).read_bytes()).hexdigest()
    assert (fetch(folder, "--sha256", good) / "README.md").exists()


def test_only_some_files(pack: Callable[..., Path], fetch: Callable[..., Path]) -> None:
    back = fetch(pack(), "--only", "sample/*", "README.md")
    assert set(content(back)) == {checksums.NAME, "README.md"} | {
        n for n in content(back) if n.startswith("sample/")
    }
    assert len(open_dataset(back / "sample", labelled=True)) == 1


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The address of an empty bucket of a local S3 server."""
    s3fs = pytest.importorskip("s3fs")
    s3fs.S3FileSystem.clear_instance_cache()  # clients keep the address of an earlier server
    servers, boto3 = pytest.importorskip("moto.server"), pytest.importorskip("boto3")
    server = servers.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
                "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": f"http://{host}:{port}",
                "NO_PROXY": "127.0.0.1"}  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="streets")
        yield "s3://streets"
    server.stop()


def test_a_copy_of_an_address_follows_its_changes(tmp_path: Path) -> None:
    """An edit that keeps the size is seen; what is gone there goes here."""
    store = remote_files.open_store("memory://changing/set")
    store.system.pipe_file(store.path("marks.json"), b'{"a": 1}')
    store.system.pipe_file(store.path("metadata-000.jsonl"), b"{}")
    remote_files.download_folder(store, tmp_path)
    store.system.pipe_file(store.path("marks.json"), b'{"b": 1}')
    store.system.rm_file(store.path("metadata-000.jsonl"))
    remote_files.download_folder(store, tmp_path)
    assert content(tmp_path) == {"marks.json": b'{"b": 1}'}


def test_s3_in_and_out(
    bucket: str,
    pack: Callable[..., Path],
    fetch: Callable[..., Path],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    remote_files.upload_folder(
        data, checksums.list_files(data), remote_files.open_store(f"{bucket}/data")
    )
    here = pack("--name", "set")
    pack("--name", "set", data=f"{bucket}/data", output=f"{bucket}/set")
    assert content(fetch(f"{bucket}/set")) == content(here)
    assert_same_samples(f"{bucket}/set", data)
    check_dataset(open_dataset(f"{bucket}/set", labelled=True))
    pack("--name", "set", data=f"{bucket}/data", output=f"{bucket}/set")
    assert "is complete already" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds another release"):
        pack("--name", "other", output=f"{bucket}/set")
    with pytest.raises(UserError, match="something else than a release"):
        pack(output=f"{bucket}/data")
    with pytest.raises(UserError, match="cannot be read"):
        fetch(f"{bucket}/nothing", output=tmp_path / "nothing")


def test_exports_go_to_a_store(
    bucket: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(data: object, output: object) -> None:
        argv = ["--data", data, "--output", output, "--format", "mmseg", "--workers", 1]
        argv += ["--work", tmp_path / "work", "--link", "copy"]
        monkeypatch.setattr(sys, "argv", ["export.py", *map(str, argv)])
        assert export.main() is None

    store = remote_files.open_store(f"{bucket}/plain")
    remote_files.upload_folder(data, checksums.list_files(data), store)
    run(f"{bucket}/plain", f"{bucket}/mmseg")
    run(data, tmp_path / "mmseg")
    remote_files.download_folder(remote_files.open_store(f"{bucket}/mmseg"), tmp_path / "back")
    found, wanted = content(tmp_path / "back"), content(tmp_path / "mmseg")
    assert set(found) == set(wanted)
    assert {n for n in found if found[n] != wanted[n]} == {"train_dataset.py", "export-train.json"}
    with pytest.raises(UserError, match="holds export-train.json"):
        run(data, f"{bucket}/mmseg")


def test_upload_that_stops_has_no_sums_and_is_continued(
    pack: Callable[..., Path], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    upload, sent = remote_files.Store.upload, []

    def stopping(self: remote_files.Store, source: Path, name: str) -> None:
        sent.append(name)
        if len(sent) == 4:
            raise KeyboardInterrupt
        upload(self, source, name)

    with monkeypatch.context() as patch:
        patch.setattr(remote_files.Store, "upload", stopping)
        with pytest.raises(KeyboardInterrupt):
            pack(output="memory://stopped/set")
    store = remote_files.open_store("memory://stopped/set")
    assert len(store.sizes()) == 3 and checksums.NAME not in store.sizes()
    pack(output="memory://stopped/set")
    assert checksums.NAME in store.sizes()
    assert_same_samples("memory://stopped/set", data)
    fsspec.filesystem("memory").rm("/stopped", recursive=True)


def test_push_is_a_dry_run_unless_told(
    pack: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub

    calls: list[tuple[str, Any]] = []

    class Client:
        def create_repo(self, repo: str, **options: Any) -> None:
            calls.append((repo, options))

        def upload_folder(self, **options: Any) -> None:
            calls.append((options["repo_id"], options["allow_patterns"]))

    monkeypatch.setattr(huggingface_hub, "HfApi", Client)
    folder = pack("--push", "me/streets")
    told = capsys.readouterr().out
    assert "nothing was sent" in told and "dataset me/streets" in told and not calls
    for name in content(folder):
        assert re.search(rf"^ *[\d,]+ {re.escape(name)}$", told, re.M)
    check_dataset(open_dataset(folder, labelled=True))
    assert (folder / "checked.json").exists()  # of the reader, not of the release
    pack("--push", "me/streets", "--upload", True)
    assert [repo for repo, _ in calls] == ["me/streets"] * 2 and calls[0][1]["private"]
    assert set(calls[1][1]) == set(content(folder))


def test_a_release_can_be_prepared_and_exported(
    pack: Callable[..., Path],
    run_program: Callable[..., Any],
    data: Path,
    tmp_path: Path,
) -> None:
    folder = pack()
    flags = ["--dataset", "own", "--root", folder, "--workers", "1"]
    run_program("pipeline/prepare.py", *flags, "--output", tmp_path / "plain")
    plain, wanted = (open_dataset(f, labelled=True) for f in (tmp_path / "plain", data))
    for one, other in zip(plain, wanted, strict=True):
        assert one.image.read_bytes() == other.image.read_bytes()
        assert one.label.read_bytes() == other.label.read_bytes()
        assert one.row["condition"] == other.row["condition"]


def test_unlabelled_collections_are_released(
    pack: Callable[..., Path], tiny_dataset: Callable[..., Path]
) -> None:
    folder = pack(data=tiny_dataset(3, 8, 8, labelled=False))
    assert [s.label for s in open_dataset(folder, labelled=False)] == [None] * 3
    with pytest.raises(UserError, match="has no label"):
        pack("--formats", "fiftyone", data=tiny_dataset(3, 8, 8, labelled=False), output="x")


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


def test_stopped_download_of_an_older_release_is_continued(
    pack: Callable[..., Path], fetch: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    folder = pack()
    staging = tmp_path / "back.downloads"
    staging.mkdir()
    (staging / checksums.NAME).write_text(f"{SUMS}  old.tar\n")
    (staging / "old.tar").write_text("x")
    (staging / f"{checksums.NAME}.new.part").write_text("x")
    with pytest.raises(UserError, match="no such file"):
        fetch(data)
    (staging / "old.tar.part").write_text("x")
    assert content(fetch(folder)) == content(folder)


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
