"""The download program: sets from every kind of source, unpacked, or one clear line."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline import download, images, label_spaces, labels
from pipeline.catalogue import specs
from pipeline.errors import UserError
from pipeline.reading import read_json
from tests.pipeline.loopback import Page, Server

COMMIT = "a" * 40
UNPACKED = {"images/1.png": b"a", "labels/1.png": b"b"}


def tree(folder: Path) -> dict[str, bytes]:
    """All files below a folder except the notes of the download."""
    paths = (p for p in folder.rglob("*") if p.is_file() and p.name != "download.json")
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int | None, Path]]:
    """Run the program in this process on a catalogue entry with the given `get` block."""

    def call(get: dict[str, Any] | None, *arguments: object) -> tuple[int | None, Path]:
        entry = {"title": "Set", "licence": "free", "splits": {"all": {}}, "get": get}
        path = tmp_path / "set.yaml"
        path.write_text(yaml.safe_dump({**entry, "homepage": "https://set.org"}))
        output = tmp_path / "data" / "set"
        flags = ["--dataset", path, "--output", output, *arguments]
        monkeypatch.setattr(sys, "argv", ["download.py", *map(str, flags)])
        return download.main(), output

    return call


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name, data in UNPACKED.items():
            file.writestr(name, data)
    return path


def sum_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_url_set_is_fetched_unpacked_and_then_complete(
    run: Callable, server: Server, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.pages["/x/set.zip"] = Page(archive.read_bytes())
    get = {"url": [{"address": server.address("/x/set.zip"), "sha256": sum_of(archive)}]}
    code, output = run(get, "--dry-run")
    assert code == 0 and "would fetch http" in capsys.readouterr().out and not server.log
    code, output = run(get)
    assert code == 0 and tree(output) == UNPACKED
    assert names(output.parent) == ["set", "set.downloads"]
    assert read_json(output / "download.json")["sha256"] == {"set.zip": sum_of(archive)}
    server.pages.clear()
    assert run(get)[0] == 0
    assert "complete already" in capsys.readouterr().out


def test_offline_uses_what_is_here(run: Callable, server: Server, archive: Path) -> None:
    get = {"url": [{"address": server.address("/set.zip"), "sha256": sum_of(archive)}]}
    with pytest.raises(UserError, match="--offline is set; give it by --archive"):
        run(get, "--offline", "True")
    kept = archive.parent / "data" / "set.downloads" / "set.zip"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(archive.read_bytes())
    assert tree(run(get, "--offline", "True")[1]) == UNPACKED
    assert not server.log


def test_google_drive(
    run: Callable,
    server: Server,
    archive: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(download, "DRIVE", server.address("/download"))
    path = "/download?id=F1_-x&export=download&confirm=t"
    get = {"google_drive": {"file_id": "F1_-x", "sha256": sum_of(archive)}}
    server.pages[path] = Page(b"<html>", headers={"Content-Type": "text/html; charset=utf-8"})
    with pytest.raises(UserError, match="web page.*quota.*with a browser.*--archive"):
        run(get)
    server.pages[path] = Page(archive.read_bytes())
    assert tree(run(get)[1]) == UNPACKED


def test_archive_by_hand_under_any_name(
    run: Callable, server: Server, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    renamed = archive.rename(archive.with_name("Set (1).zip"))
    with pytest.raises(UserError, match="has sha256 .* delete it and get it again"):
        run({"google_drive": {"file_id": "F", "sha256": "0" * 64}}, "--archive", renamed)
    code, output = run({"google_drive": {"file_id": "F"}}, "--archive", renamed)
    assert code == 0 and tree(output) == UNPACKED
    assert f"sha256 {sum_of(renamed)}, nothing to compare it with" in capsys.readouterr().out
    assert not server.log and names(output.parent) == ["set"]


def test_released_dginstyle_set_is_read_from_its_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = np.array([[0, 18], [19, 255]], np.uint8)
    with zipfile.ZipFile(tmp_path / "drive.zip", "w") as file:
        for stem in ("a_00001_genid0", "n_00002_genid0", "00003_genid0"):
            folder = "DGInStyle_Datasets/half_adverse_half_normal"
            file.writestr(f"{folder}/images/{stem}.png", images.encode_png(label))
            file.writestr(f"{folder}/labels/{stem}_labelTrainIds.png", images.encode_png(label))
    output = tmp_path / "set"
    flags = ["--dataset", "dginstyle", "--output", output, "--archive", tmp_path / "drive.zip"]
    monkeypatch.setattr(sys, "argv", ["download.py", *map(str, flags)])
    assert download.main() == 0
    listing = specs.list_pairs(specs.load_spec("dginstyle"), output, "all")
    assert len(listing.pairs) == 3 and not listing.orphans
    conditions = {pair.image.name[:2]: pair.attributes["condition"] for pair in listing.pairs}
    assert conditions == {"a_": "adverse", "n_": "night", "00": "none"}
    for pair in listing.pairs:
        read = labels.read_label(pair.label, label_spaces.label_space(listing.label_space))
        assert read.tolist() == [[0, 18], [255, 255]]


def test_registration_says_where_and_what(
    run: Callable, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = [
        {"name": "set.zip", "bytes": archive.stat().st_size, "holds": "images"},
        {"name": "more.zip", "bytes": 2_500_000_000, "holds": "labels"},
    ]
    get = {"registration": {"address": "https://set.org/login", "files": wanted}}
    with pytest.raises(UserError, match="more.zip: only registered users"):
        run(get, "--archive", archive)
    shown = capsys.readouterr().out
    assert "https://set.org/login" in shown
    assert "more.zip (2.5 GB): unpacks to" in shown and "data/set/labels" in shown
    del wanted[1]
    assert tree(run(get, "--archive", archive)[1]) == UNPACKED


def test_hashes_may_be_in_capitals(run: Callable, archive: Path) -> None:
    md5 = hashlib.md5(archive.read_bytes()).hexdigest().upper()
    known = {"address": "https://set.org/set.zip", "sha256": sum_of(archive).upper(), "md5": md5}
    assert tree(run({"url": [known]}, "--archive", archive)[1]) == UNPACKED


@pytest.mark.parametrize(
    ("get", "flags", "message"),
    [
        (None, (), "names 0 ways .* by hand from https://set.org"),
        ({"url": [], "google_drive": {}}, (), "names 2 ways"),
        ({"ftp": {}}, (), "unknown key 'ftp'"),
        ({"url": [{"adress": "x"}]}, (), "unknown key 'adress'; known keys: name, address"),
        ({"url": [{"address": "http://set.org/a.zip"}]}, (), "needs https, or a hash"),
        ({"url": [{"address": "https://set.org/"}]}, ("--archive", "b"), "b: is not here"),
        ({"url": [{"name": "../x", "address": "https://a"}]}, (), "not a plain file name"),
        ({"huggingface": {"repo": "a/b", "revision": "main"}}, (), "40-digit revision"),
        ({"huggingface": {"repo": "a/b"}}, ("--archive", "x"), "--archive: has no meaning"),
        ({"google_drive": {"file_id": "F"}}, ("--revision", COMMIT), "--revision: has no"),
        ({"url": [{"address": "file:///etc/a"}]}, (), "not one of the web"),
        ({"url": [{"address": "a.zip"}]}, (), "not one of the web"),
        ({"url": [{"address": "https://a/b.zip", "bytes": 10**30}]}, (), "must be a number from"),
        ({"url": "https://a/b.zip"}, (), "expected a list"),
        ({"git": {"address": "ext::sh -c id", "revision": COMMIT}}, (), "plain https address"),
        ({"git": {"address": "--upload-pack=id"}}, (), "plain https address"),
        ({"git": {"address": "https://a/b", "revision": "main"}}, (), "40-digit revision"),
        ({"git": {"address": "https://a/b", "revision": COMMIT}}, (), "names no folders"),
        (
            {"git": {"address": "https://a/b", "revision": COMMIT, "folders": ["../x"]}},
            (),
            "plain path",
        ),
        ({"huggingface": None}, (), "huggingface names nothing to fetch"),
        ({"git": None}, (), "git names nothing to fetch"),
        ({"url": []}, (), "url names nothing to fetch"),
        ({"registration": {}}, (), "registration names nothing to fetch"),
        ({"url": [{"address": "https://a/b.zip"}, {"address": "https://c/b.zip"}]}, (), "one name"),
        ({"url": [{"address": "https://a/b.zip", "bytes": -1}]}, (), "correct or remove it"),
        (
            {"url": [{"address": "https://a/b.zip", "sha256": "zz"}]},
            (),
            "sha256 zz is not 64 hexadecimal digits",
        ),
        ({"url": [{"address": "https://a/b.zip", "md5": "0" * 64}]}, (), "correct or remove it"),
        ({"google_drive": {"file_id": "F"}}, ("--output", "."), "must name a new folder"),
        ({"google_drive": {"file_id": "F"}}, ("--output", "/"), "must name a new folder"),
    ],
)
def test_faults_in_settings(run: Callable, get: Any, flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(get, *flags)


FETCHABLE = [n for n in specs.known_datasets() if specs.load_spec(n).get]


@pytest.mark.parametrize("name", FETCHABLE)
def test_every_get_block_of_the_catalogue_is_sound(name: str) -> None:
    revision = COMMIT if "huggingface" in (specs.load_spec(name).get or {}) else ""
    sources = download.read_sources(download.Config(dataset=name, revision=revision))
    names = [file.name for file in sources.archives()]
    assert len(names) == len(set(names)) and (names or sources.huggingface or sources.release)
    for file in sources.archives():
        assert {len(file.sha256), len(file.md5)} <= {0, 32, 64}
        assert file.address.startswith("https://") or sources.registration
    if sources.git:
        assert re.fullmatch("[0-9a-f]{40}", sources.git.revision)


@pytest.fixture
def repository(tmp_path: Path) -> tuple[Path, str]:
    """A git repository and the name of its commit."""
    folder = tmp_path / "origin"
    for name, data in {"Set/val/1.png": "a", "Set/valannot/1.png": "b", "README": "c"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(data)

    def git(*words: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(
            ["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "a")
    git("config", "uploadpack.allowAnySHA1InWant", "true")
    return folder, git("rev-parse", "HEAD")


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_folders_of_a_pinned_commit_come_by_git_and_then_offline(
    run: Callable, repository: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, commit = repository
    address = "https://example.invalid/owner/Set.git"
    monkeypatch.setenv("GIT_ALLOW_PROTOCOL", "file")
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.file://{folder}.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", address)
    get = {"git": {"address": address, "revision": "b" * 40, "folders": ["Set"]}}
    with pytest.raises(UserError, match="git: .*or clone https://example.invalid/owner/Set.git"):
        run(get)
    get["git"]["revision"] = commit
    code, output = run(get)
    assert code == 0 and tree(output) == {"val/1.png": b"a", "valannot/1.png": b"b"}
    assert read_json(output / "download.json")["revision"] == commit
    assert names(output.with_name("set.downloads")) == [f"Set-{commit[:12]}.tar"]
    shutil.rmtree(output)
    shutil.rmtree(folder)
    assert run(get, "--offline", "True")[0] == 0 and (output / "val" / "1.png").exists()
    shutil.rmtree(output.parent)
    with pytest.raises(UserError, match="--offline is set"):
        run(get, "--offline", "True")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(UserError, match="git: is not installed.*clone https://example.invalid"):
        run(get)


def test_output_must_be_new_and_disk_faults_are_named(
    run: Callable, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = {"google_drive": {"file_id": "F"}}
    monkeypatch.setattr(os, "sync", lambda: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(UserError, match="No space left; free the disk"):
        run(get, "--archive", archive)
    output = archive.parent / "data" / "set"
    assert names(output.parent) == []
    output.mkdir()
    (output / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="holds mine.txt and has no download.json"):
        run(get, "--archive", archive)
    assert tree(output) == {"mine.txt": b"x"}


def test_hub_files_of_a_pinned_commit_and_then_offline(
    server: Server, tmp_path: Path, root: Path
) -> None:
    """Run the program itself: the hub's client reads its address when it is imported."""
    contents = {"rgb/1.png": b"a", "ss/1.png": b"b", "extra.bin": b"c"}
    listing = [
        {"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
        for n, d in contents.items()
    ]
    base = "/datasets/owner/name/resolve/" + COMMIT
    for name, data in contents.items():
        server.pages[f"{base}/{name}"] = Page(data, headers={"X-Repo-Commit": COMMIT})
    tree_page = Page(json.dumps(listing).encode(), headers={"Content-Type": "application/json"})
    for query in ("?recursive=True&expand=False", "?recursive=true&expand=false"):
        server.pages[f"/api/datasets/owner/name/tree/{COMMIT}{query}"] = tree_page
    entry = {
        "title": "Set",
        "licence": "free",
        "splits": {"all": {}},
        "get": {"huggingface": {"repo": "owner/name", "files": ["rgb/*.png", "ss/*.png"]}},
    }
    (tmp_path / "set.yaml").write_text(yaml.safe_dump(entry))

    def call(output: str, *flags: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable, str(root / "pipeline" / "download.py"), "--dataset",
            str(tmp_path / "set.yaml"), "--output", str(tmp_path / output), *flags,
        ]  # fmt: skip
        environment = {
            **os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": server.address(""),
            "HF_HOME": str(tmp_path / "hub"), "HF_TOKEN": "secret-token",
        }  # fmt: skip
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=50)

    done = call("out", "--revision", COMMIT)
    assert done.returncode == 0, done.stderr + str(server.log)
    assert tree(tmp_path / "out") == {"rgb/1.png": b"a", "ss/1.png": b"b"}
    assert read_json(tmp_path / "out" / "download.json")["revision"] == COMMIT
    num_requests = len(server.log)
    done = call("again", "--revision", COMMIT, "--offline", "True")
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "again") == {"rgb/1.png": b"a", "ss/1.png": b"b"}
    done = call("other", "--revision", "b" * 40, "--offline", "True")
    assert done.returncode == 2 and len(server.log) == num_requests
    assert done.stderr.startswith("streetforge: owner/name@bbbb") and "--offline" in done.stderr
    assert "secret-token" not in done.stderr + done.stdout and done.stderr.count("\n") == 1
