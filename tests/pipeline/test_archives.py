"""Archives unpack whole or not at all, and only to plain files below the folder."""

import bz2
import gzip
import io
import lzma
import os
import random
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import files
from pipeline.catalogue import archives
from pipeline.errors import UserError
from pipeline.reading import read_json


def write_zip(path: Path, members: dict[str, bytes], **attributes: int) -> Path:
    """Write a zip; `attributes` are set on the first member."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, (name, data) in enumerate(members.items()):
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            for key, value in attributes.items() if number == 0 else ():
                setattr(info, key, value)
            archive.writestr(info, data)
    return path


def write_tar(path: Path, *members: tarfile.TarInfo | tuple[str, bytes]) -> Path:
    """Write a tar, compressed if its name says so."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            archive.addfile(info, io.BytesIO(member[1]))
    return path


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    """A tar member that is no file."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def tree(folder: Path) -> dict[str, bytes]:
    """All files below a folder except the notes of the download."""
    paths = (p for p in folder.rglob("*") if p.is_file() and p.name != "download.json")
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


def test_archives_of_a_set_meet_in_one_folder(tmp_path: Path) -> None:
    contents = {"images/1.png": b"a" * 1024, "README": b"one", "images/": b""}
    sources = {
        "a.zip": write_zip(tmp_path / "a.zip", contents),
        "b.tar": write_tar(tmp_path / "b.tar", ("./labels/1.png", b"b"), ("README", b"two")),
        "c.tar.gz": write_tar(
            tmp_path / "c.tar.gz", special(".", tarfile.DIRTYPE), ("./labels/2.png", b"c" * 512)
        ),
    }
    output = tmp_path / "out"
    assert archives.unpack(sources, output, {"dataset": "x"}) == 4
    assert tree(output) == {
        "images/1.png": b"a" * 1024,
        "README": b"one",
        "labels/1.png": b"b",
        "labels/2.png": b"c" * 512,
    }
    assert read_json(output / "download.json") == {"dataset": "x", "num_files": 4}


def test_enclosing_folders_are_left_out(tmp_path: Path) -> None:
    members = {"Set/half/images/1.png": b"a", "Set/half/labels/1.png": b"b"}
    archives.unpack({"x": write_zip(tmp_path / "x", members)}, tmp_path / "out", {})
    assert tree(tmp_path / "out") == {"images/1.png": b"a", "labels/1.png": b"b"}


def test_what_file_managers_add_is_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = {
        "set/images/1.png": b"a", "__MACOSX/set/images/._1.png": b"x", "set/.DS_Store": b"x",
        "set/images/Thumbs.db": b"x", "set/labels/1.png": b"b", "set/labels/._1.png": b"x",
    }  # fmt: skip
    for name, path in (
        ("zip", write_zip(tmp_path / "x", members)),
        ("tar", write_tar(tmp_path / "y", *members.items())),
    ):
        assert archives.unpack({"x": path}, tmp_path / name, {}) == 2
        assert tree(tmp_path / name) == {"images/1.png": b"a", "labels/1.png": b"b"}
        message = capsys.readouterr().err
        assert "4 files of file managers are left out" in message and "__MACOSX/set" in message


def zip_of(*names: str, **attributes: int) -> Callable[[Path], Path]:
    return lambda path: write_zip(path, dict.fromkeys(names, b"x"), **attributes)


def tar_of(*members: tarfile.TarInfo | tuple[str, bytes]) -> Callable[[Path], Path]:
    return lambda path: write_tar(path, *members)


def link_mode(kind: int) -> int:
    return (kind | 0o644) << 16


def sparse(path: Path) -> Path:
    info = special("big", tarfile.REGTYPE)
    info.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": "1", "GNU.sparse.major": "0"}
    return write_tar(path, info)


def cut(path: Path) -> Path:
    whole = write_tar(path, ("a", b"x" * 4096), ("b", b"y" * 4096)).read_bytes()
    path.write_bytes(whole[: 512 + 4096])
    return path


def wrong_sum(path: Path) -> Path:
    data = zip_of("a" * 50)(path).read_bytes()
    path.write_bytes(
        data.replace(zipfile.ZipFile(path).infolist()[0].CRC.to_bytes(4, "little"), b"\0\0\0\0")
    )
    return path


def long_header(path: Path) -> Path:
    """A tar.gz whose header claims a name of 30 MB."""
    info = special("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    info.size = 30 << 20
    path.write_bytes(gzip.compress(info.tobuf() + bytes(info.size)))
    return path


def chained(path: Path) -> Path:
    """A tar of thousands of extended headers, each about the next one."""
    record = b"30 path=" + b"a" * 21 + b"\n"
    info = special("x", tarfile.XHDTYPE)
    info.size = len(record)
    path.write_bytes((info.tobuf() + record.ljust(512, b"\0")) * 3000 + bytes(1024))
    return path


BAD = {
    "zip traversal": (zip_of("good", "../evil"), "outside the folder"),
    "zip absolute": (zip_of("/evil"), "outside the folder"),
    "zip backslash": (zip_of("a\\..\\evil"), "outside the folder"),
    "zip share": (zip_of("\\\\server\\evil"), "outside the folder"),
    "zip empty": (zip_of(), "no file is in it"),
    "zip of folders": (zip_of("a/", "a/b/"), "no file is in it"),
    "tar of folders": (tar_of(special("a", tarfile.DIRTYPE)), "no file is in it"),
    "tar chained headers": (chained, "headers go too deep"),
    "tar.xz": (lambda p: p.write_bytes(lzma.compress(b"x")) and p, r"tar -xJf x\) and prepare"),
    "tar.bz2": (lambda p: p.write_bytes(bz2.compress(b"x")) and p, "tar -xjf x"),
    "7z": (lambda p: p.write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(600)) and p, "7z x x"),
    "rar": (lambda p: p.write_bytes(b"Rar!" + bytes(600)) and p, "7z x x"),
    "deflate64": (
        lambda p: (
            p.write_bytes(zip_of("e")(p).read_bytes().replace(b"\x14\0\0\0\x08", b"\x14\0\0\0\x09"))
            and p
        ),
        "unpack it yourself into .*7z x x",
    ),
    "git lfs pointer": (
        lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid x\n") and p,
        "Git LFS pointer.*git lfs pull",
    ),
    "zip that lost bytes": (
        lambda p: p.write_bytes(zip_of("a" * 150, "b")(p).read_bytes()[100:]) and p,
        "nothing was unpacked, get the archive",
    ),
    "zip with our record as a folder": (zip_of("download.json/a", "b"), "folder download.json"),
    "program that unpacks itself": (lambda p: p.write_bytes(b"MZ" + bytes(600)) and p, "7z x x"),
    "first part of a split zip": (lambda p: p.write_bytes(b"PK\7\10" + bytes(600)) and p, "7z x"),
    "tar.Z": (lambda p: p.write_bytes(b"\x1f\x9d" + bytes(600)) and p, "tar -xZf x"),
    "zip dot": (zip_of("a/./b"), "outside the folder"),
    "zip control character": (zip_of("a\nb"), "characters"),
    "zip link": (zip_of("l", external_attr=link_mode(stat.S_IFLNK)), "link"),
    "zip device": (zip_of("d", external_attr=link_mode(stat.S_IFCHR)), "device"),
    "zip encrypted": (
        lambda path: (
            path.write_bytes(
                zip_of("e")(path).read_bytes().replace(b"\x14\0\0\0\x08", b"\x14\0\1\0\x08")
            )
            and path
        ),
        "unpack it yourself into .*7z x x",
    ),
    "zip folder as file": (zip_of("a/b", "a"), "needs a folder where another is"),
    "zip endless path": (zip_of("a/" * 3000 + "b"), "characters that no file name"),
    "zip long name": (zip_of("a" * 300), "characters that no file name"),
    "zip case clash": (zip_of("a/B", "a/b"), "twice"),
    "zip normalisation clash": (zip_of("\u00e9.png", "e\u0301.png"), "twice"),
    "zip wrong sum": (wrong_sum, "CRC"),
    "tar traversal": (tar_of(("a/../../evil", b"x")), "outside the folder"),
    "tar absolute": (tar_of(("/tmp/evil", b"x")), "outside the folder"),
    "tar symlink": (tar_of(special("l", tarfile.SYMTYPE, "/etc")), "link"),
    "tar hard link": (tar_of(("a", b"x"), special("l", tarfile.LNKTYPE, "a")), "link"),
    "tar device": (tar_of(special("d", tarfile.CHRTYPE)), "device"),
    "tar fifo": (tar_of(special("f", tarfile.FIFOTYPE)), "device"),
    "tar duplicate": (tar_of(("a", b"x"), ("./a", b"y")), "twice"),
    "tar file as folder": (tar_of(("a", b"x"), ("a/b", b"y")), "needs a folder where another is"),
    "tar sparse": (sparse, "sparse"),
    "tar cut between members": (cut, "ends early"),
    "tar endless header": (long_header, "header is too long"),
    "web page": (lambda path: path.write_text("<html>quota</html>") and path, "saved web page"),
    "half a gzip": (
        lambda path: (
            path.write_bytes(gzip.compress(random.Random(0).randbytes(9999))[:5000]) and path
        ),
        "damaged|ended|header|checksum",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_archives_are_refused_and_nothing_is_left(name: str, tmp_path: Path) -> None:
    write, reason = BAD[name]
    (tmp_path / "in").mkdir()
    source = write(tmp_path / "in" / "x")
    with pytest.raises((UserError, OSError), match=reason) as caught:
        archives.unpack({"x": source}, tmp_path / "out" / "set", {})
    assert "\n" not in str(caught.value)
    left = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert left == [source]


def test_back_slashes_are_slashes(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x", {"images\\1.png": b"a", "labels\\": b"", "labels/1.png": b"b"})
    assert archives.unpack({"x": path}, tmp_path / "out", {}) == 2
    assert tree(tmp_path / "out") == {"images/1.png": b"a", "labels/1.png": b"b"}


def test_a_pipe_is_no_archive(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x")
    with pytest.raises(UserError, match="is a pipe"):
        archives.unpack({"x": tmp_path / "x"}, tmp_path / "out", {})


def test_folders_and_headers_count_towards_the_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [special(f"{number}", tarfile.DIRTYPE) for number in range(200)]
    path = write_tar(tmp_path / "x.gz", ("a", b"x"), *folders)
    monkeypatch.setattr(archives, "MAX_MEMBERS", 100)
    with pytest.raises(UserError, match="far too much"):
        archives.unpack({"x": path}, tmp_path / "out", {})
    monkeypatch.setattr(archives, "MAX_MEMBERS", 10_000)
    monkeypatch.setattr(archives, "SPARE_BYTES", 1 << 10)
    monkeypatch.setattr(archives, "MAX_GROWTH", 1)
    with pytest.raises(UserError, match="far too much"):
        archives.unpack({"x": path}, tmp_path / "out", {})


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_bombs_are_refused_before_they_unpack(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "SPARE_BYTES", 1 << 16)
    path, zeros = tmp_path / f"x.{kind}", bytes(4 << 20)
    if kind == "zip":
        write_zip(path, {"good": b"x", "zeros": zeros})
    else:
        write_tar(path, ("good", b"x"), ("zeros", zeros))
    with pytest.raises(UserError, match="'zeros' makes it unpack to far too much"):
        archives.unpack({"x": path}, tmp_path / "out", {})
    monkeypatch.setattr(archives, "SPARE_BYTES", 1 << 30)
    monkeypatch.setattr(archives, "MAX_MEMBERS", 1)
    with pytest.raises(UserError, match="far too much"):
        archives.unpack({"x": path}, tmp_path / "out", {})
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name]


def test_zip_that_lies_about_a_size_stays_within_it(tmp_path: Path) -> None:
    data = write_zip(tmp_path / "x", {"zeros": bytes(1 << 20)}).read_bytes()
    (tmp_path / "x").write_bytes(data.replace((1 << 20).to_bytes(4, "little"), b"\1\0\0\0"))
    with pytest.raises(UserError, match="CRC|nothing was unpacked"):
        archives.unpack({"x": tmp_path / "x"}, tmp_path / "out", {})


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    dead = tmp_path / f"out [1]{files.TEMPORARY_MARK}999999999-abc"
    (dead / "images").mkdir(parents=True)
    archives.unpack({"x": write_zip(tmp_path / "x", {"a": b"x"})}, tmp_path / "out [1]", {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out [1]", "x"]


def test_mutated_archives_never_write_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setattr(os, "sync", lambda: None)
    draw = random.Random(0)
    zipped = write_zip(tmp_path / "z", {"a/b.png": b"x" * 99, "c": b"y"}).read_bytes()
    tarred = write_tar(tmp_path / "t", ("a/b.png", b"x" * 99), ("c", b"y")).read_bytes()[:3072]
    path = tmp_path / "x"
    for _ in range(300):
        data = bytearray(draw.choice((zipped, tarred)))
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        path.write_bytes(data)
        try:
            archives.unpack({"x": path}, tmp_path / "out" / "set", {})
            shutil.rmtree(tmp_path / "out")
        except (UserError, OSError):
            pass
    assert {p.name for p in tmp_path.iterdir()} <= {"z", "t", "x", "out"}
    assert not list((tmp_path / "out").rglob("*"))
