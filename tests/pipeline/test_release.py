"""Releases sent to stores and servers, and brought back whole."""

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import checksums, export, remote_files
from pipeline.claims import sole_writer
from pipeline.dataset import check_dataset, open_dataset
from pipeline.errors import UserError
from tests.pipeline.loopback import Page, Server
from tests.pipeline.releases import ALL, assert_same_samples, content
from tests.pipeline.releases import data as data
from tests.pipeline.releases import fetch as fetch
from tests.pipeline.releases import pack as pack


def serve(server: Server, folder: Path, cuts: dict[str, list[int]]) -> str:
    """Put the files of a folder on the loopback server; return its address."""
    for name, file in content(folder).items():
        server.pages[f"/set/{name}"] = Page(file, cuts=cuts.get(name, []))
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


def test_a_bucket_that_is_missing_is_not_created(
    bucket: str, pack: Callable[..., Path], data: Path
) -> None:
    import boto3

    for call in (
        lambda: pack(output="s3://misspelt/set"),
        lambda: remote_files.upload_folder(data, [], remote_files.open_store("s3://misspelt")),
        lambda: pack(data="s3://misspelt/set"),
    ):
        with pytest.raises(UserError, match="there is no bucket misspelt; create it"):
            call()
    assert [b["Name"] for b in boto3.client("s3").list_buckets()["Buckets"]] == ["streets"]
    assert remote_files.open_store(f"{bucket}/empty").sizes() == {}


def test_marks_behind_an_address_are_applied(
    pack: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, store = pack(), remote_files.open_store("memory://marked/set")
    remote_files.upload_folder(folder, checksums.list_files(folder), store)
    everything = [sample.id for sample in open_dataset(store.address, labelled=True)]
    assert everything == [sample.id for sample in open_dataset(folder, labelled=True)]
    store.write("marks.json", json.dumps({"samples": {everything[2]: {"excluded": True}}}).encode())
    left = [sample.id for sample in open_dataset(store.address, labelled=True)]
    assert left == everything[:2] + everything[3:]
    assert "1 samples are excluded by marks.json" in capsys.readouterr().err
    store.write("marks.json", b"[]")
    with pytest.raises(UserError, match="memory://marked/set/marks.json: .*correct it"):
        open_dataset(store.address, labelled=True)


def test_marks_that_may_not_be_read_are_not_taken_for_absent(
    pack: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stores answer "forbidden" for an absent file only where nobody may list."""
    folder, store = pack(), remote_files.open_store("memory://closed/set")
    remote_files.upload_folder(folder, checksums.list_files(folder), store)
    read = type(store.system).cat_file

    def forbid(*_: object, **__: object) -> None:
        raise PermissionError(13, "Access Denied")

    def read_no_marks(self: Any, path: str, **options: Any) -> bytes:
        return forbid() if path.endswith("marks.json") else read(self, path, **options)

    monkeypatch.setattr(type(store.system), "cat_file", read_no_marks)
    refusal = "memory://closed/set/marks.json: cannot be read .Access Denied.; .*your credentials"
    with pytest.raises(UserError, match=refusal):
        open_dataset(store.address, labelled=True)
    monkeypatch.setattr(type(store.system), "ls", forbid)
    assert len(open_dataset(store.address, labelled=True)) == len(
        open_dataset(folder, labelled=True)
    )
    notice = "notice: memory://closed/set: neither marks.json nor the list of files may be read"
    assert notice in capsys.readouterr().err


def test_a_store_with_a_file_in_a_folders_place_is_named(tmp_path: Path) -> None:
    """Object stores have such names, file systems do not."""
    store = remote_files.open_store("memory://conflict/set")
    sizes = {"a": 1, "a/b": 1, "ab": 1}
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(UserError, match="holds the file a and below that name a/b, .*rename one"),
    ):
        patch.setattr(remote_files.Store, "sizes", lambda self: sizes)
        remote_files.download_folder(store, tmp_path)


def test_two_at_once_are_refused_in_one_line(
    pack: Callable[..., Path], fetch: Callable[..., Path], tmp_path: Path
) -> None:
    busy = f"process {os.getpid()} on .* is writing to it; wait for its end, or stop it"
    with (
        sole_writer(tmp_path / "set.packing", beside=True),
        pytest.raises(UserError, match=f"set.packing: {busy}"),
    ):
        pack()
    folder = pack()
    with (
        sole_writer(tmp_path / "back.downloads", beside=True),
        pytest.raises(UserError, match=f"back.downloads: {busy}"),
    ):
        fetch(folder)
    assert content(fetch(folder)) == content(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "set"]


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


def test_push_is_a_dry_run_unless_asked(
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
    message = capsys.readouterr().out
    assert "nothing was sent" in message and "dataset me/streets" in message and not calls
    for name in content(folder):
        assert re.search(rf"^ *[\d,]+ {re.escape(name)}$", message, re.M)
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


def test_stopped_download_of_an_older_release_is_continued(
    pack: Callable[..., Path], fetch: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    folder = pack()
    staging = tmp_path / "back.downloads"
    staging.mkdir()
    (staging / checksums.NAME).write_text(f"{'0' * 64}  old.tar\n")
    (staging / "old.tar").write_text("x")
    (staging / f"{checksums.NAME}.new.part").write_text("x")
    with pytest.raises(UserError, match="no such file"):
        fetch(data)
    (staging / "old.tar.part").write_text("x")
    assert content(fetch(folder)) == content(folder)
