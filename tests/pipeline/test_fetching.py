"""One file from a server: whole and checked, continued, or one clear line and nothing left."""

import hashlib
import http.server
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from pipeline import files
from pipeline.catalogue import fetching
from pipeline.catalogue.fetching import RemoteFile, fetch
from pipeline.errors import UserError
from tests.pipeline.loopback import DATA, Page, Server


def remote(server: Server, data: bytes = DATA, path: str = "/set.zip", **known: Any) -> RemoteFile:
    known = {"sha256": hashlib.sha256(data).hexdigest(), **known}
    return RemoteFile("set.zip", server.address(path), **known)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_file_arrives_whole(server: Server, tmp_path: Path) -> None:
    server.pages["/set.zip"] = Page()
    fetch(remote(server, bytes=len(DATA)), tmp_path / "set.zip")
    assert (tmp_path / "set.zip").read_bytes() == DATA
    assert names(tmp_path) == ["set.zip"] and server.log == [("/set.zip", "")]


def test_an_encoding_that_changes_nothing_is_none(server: Server, tmp_path: Path) -> None:
    server.pages["/set.zip"] = Page(headers={"Content-Encoding": "Identity"})
    fetch(remote(server), tmp_path / "set.zip", wait_s=0)
    assert (tmp_path / "set.zip").read_bytes() == DATA


def test_cut_connections_are_continued(server: Server, tmp_path: Path) -> None:
    server.pages["/set.zip"] = Page(cuts=[300_000, 0, 1, 400_000])
    fetch(remote(server), tmp_path / "set.zip", wait_s=0)
    assert (tmp_path / "set.zip").read_bytes() == DATA
    starts = [wanted for _, wanted in server.log]
    assert starts[:2] == ["", "bytes=300000-"] and len(starts) == 5


def test_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    server.pages["/set.zip"] = Page(cuts=[300_000], ranges=False)
    fetch(remote(server), tmp_path / "set.zip", wait_s=0)
    assert (tmp_path / "set.zip").read_bytes() == DATA


def test_next_run_continues_what_was_left(server: Server, tmp_path: Path) -> None:
    server.pages["/set.zip"] = Page(cuts=[300_000, 0, 0, 0, 0, 0, 0])
    with pytest.raises(UserError, match="run the same command again later"):
        fetch(remote(server), tmp_path / "set.zip", wait_s=0)
    assert names(tmp_path) == ["set.zip.part"]
    server.log.clear()
    fetch(remote(server), tmp_path / "set.zip", wait_s=0)
    assert server.log[-1] == ("/set.zip", "bytes=300000-")
    assert names(tmp_path) == ["set.zip"]


def test_what_a_killed_process_left_is_taken_over(server: Server, tmp_path: Path) -> None:
    server.pages["/set.zip"] = Page()
    (tmp_path / f"set.zip{files.TEMPORARY_MARK}999999999-abc").write_bytes(DATA[:1000])
    alive = tmp_path / f"set.zip{files.TEMPORARY_MARK}{os.getppid()}-abc"
    alive.write_bytes(b"of another download")
    fetch(remote(server), tmp_path / "set.zip")
    assert server.log == [("/set.zip", "bytes=1000-")]
    assert names(tmp_path) == ["set.zip", alive.name]


def test_without_a_hash_nothing_old_is_continued(server: Server, tmp_path: Path) -> None:
    server.pages["/set.zip"] = Page()
    (tmp_path / "set.zip.part").write_bytes(b"of another version")
    fetch(remote(server, sha256=""), tmp_path / "set.zip")
    assert (tmp_path / "set.zip").read_bytes() == DATA and server.log == [("/set.zip", "")]


def test_file_that_changes_between_attempts_is_sent_again(server: Server, tmp_path: Path) -> None:
    other = DATA[::-1]
    server.pages["/set.zip"] = Page(cuts=[300_000], changes_to=other)
    fetch(remote(server, sha256=""), tmp_path / "set.zip", wait_s=0)
    assert (tmp_path / "set.zip").read_bytes() == other


def test_a_part_of_unsaid_length_is_continued(server: Server, tmp_path: Path) -> None:
    server.pages["/set.zip"] = Page(cuts=[300_000], total="*")
    fetch(remote(server, sha256=""), tmp_path / "set.zip", wait_s=0)
    assert (tmp_path / "set.zip").read_bytes() == DATA
    assert [wanted for _, wanted in server.log] == ["", "bytes=300000-"]


@pytest.mark.parametrize("total", ["?", "a", "12345678901234567890", "-3"])
def test_a_part_that_does_not_say_where_it_belongs_is_not_used(
    server: Server, tmp_path: Path, total: str
) -> None:
    server.pages["/set.zip"] = Page(cuts=[300_000], total=total)
    fetch(remote(server, sha256=""), tmp_path / "set.zip", wait_s=0)
    assert (tmp_path / "set.zip").read_bytes() == DATA
    assert [wanted for _, wanted in server.log] == ["", "bytes=300000-", ""]


def test_a_shorter_file_between_attempts_is_sent_again_without_a_tag(
    server: Server, tmp_path: Path
) -> None:
    other = DATA[::-1][:-5]
    server.pages["/set.zip"] = Page(cuts=[300_000], changes_to=other, etag=False)
    fetch(remote(server, sha256=""), tmp_path / "set.zip", wait_s=0)
    assert (tmp_path / "set.zip").read_bytes() == other


def test_chunks_without_a_length_are_held_to_the_hash(server: Server, tmp_path: Path) -> None:
    server.pages["/set.zip"] = Page(chunks=1000, length=False, cuts=[len(DATA) // 2])
    fetch(remote(server), tmp_path / "set.zip", wait_s=0)
    assert (tmp_path / "set.zip").read_bytes() == DATA and names(tmp_path) == ["set.zip"]
    assert [wanted != "" for _, wanted in server.log] == [False, True]
    server.pages["/set.zip"] = Page(DATA[:-1], chunks=1000, length=False)
    with pytest.raises(UserError, match="has sha256"):
        fetch(remote(server), tmp_path / "other.zip", wait_s=0)
    assert names(tmp_path) == ["set.zip"]


def test_a_file_that_never_stays_the_same_is_given_up(server: Server, tmp_path: Path) -> None:
    server.pages["/set.zip"] = Page(cuts=[1000] * 50, keeps_changing=True)
    with pytest.raises(UserError, match="changed it meanwhile; run the same"):
        fetch(remote(server, sha256=""), tmp_path / "set.zip", wait_s=0)
    assert not (tmp_path / "set.zip").exists()


def test_two_downloads_at_once_give_one_good_file(server: Server, tmp_path: Path) -> None:
    server.pages["/set.zip"] = Page()
    work = [
        threading.Thread(target=fetch, args=(remote(server), tmp_path / "set.zip"))
        for _ in range(4)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert (tmp_path / "set.zip").read_bytes() == DATA and names(tmp_path) == ["set.zip"]


REFUSED = {
    "wrong hash": (Page(DATA[:-1] + b"?"), "has sha256 .* is expected"),
    "wrong md5": (Page(), "has md5 .* but 0+ is expected"),
    "wrong length": (Page(DATA[:-1]), "offers 1048575 bytes, 1048576 are expected"),
    "no length": (Page(length=False), "does not say how long"),
    "quota page": (Page(b"<html>quota", headers={"Content-Type": "text/html; x"}), "web page"),
    "page in capitals": (Page(b"<html>", headers={"Content-Type": "TEXT/HTML"}), "web page"),
    "to no address": (Page(status=302, headers={"Location": "//[::bad"}), "ValueError"),
    "compressed": (Page(headers={"Content-Encoding": "gzip"}), "compressed .gzip."),
    "not found": (Page(status=404), "answered 404"),
    "forbidden": (Page(status=403), "answered 403"),
    "too many requests": (Page(status=429), "answered 429"),
    "server error": (Page(status=500), "answered 500"),
    "redirect loop": (Page(status=302, headers={"Location": "/set.zip"}), "TooManyRedirects"),
    "other scheme": (Page(status=302, headers={"Location": "file:///etc/hosts"}), "InvalidSchema"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_answers_leave_nothing_under_the_name(
    name: str, server: Server, tmp_path: Path
) -> None:
    server.pages["/set.zip"], reason = REFUSED[name]
    known = {"md5": "0" * 32} if name == "wrong md5" else {}
    known |= {"bytes": len(DATA)} if name == "wrong length" else {}
    known |= {"sha256": ""} if name == "no length" else {}
    with pytest.raises(UserError, match=reason) as caught:
        fetch(remote(server, **known), tmp_path / "set.zip", wait_s=0)
    assert server.address("/set.zip") in str(caught.value) and "\n" not in str(caught.value)
    assert names(tmp_path) == []


def test_silent_server_and_no_server(server: Server, tmp_path: Path) -> None:
    with http.server.socketserver.TCPServer(("127.0.0.1", 0), None) as silent:  # type: ignore[attr-defined]
        address = f"http://127.0.0.1:{silent.server_address[1]}/set.zip"
        with pytest.raises(UserError, match="ReadTimeout"):
            fetch(RemoteFile("set.zip", address), tmp_path / "set.zip", timeout_s=0.05, wait_s=0)
    with pytest.raises(UserError, match="ConnectionError.*give it by --archive"):
        fetch(RemoteFile("set.zip", address), tmp_path / "set.zip", wait_s=0)
    assert names(tmp_path) == []


@pytest.mark.parametrize("address", ["https://127.0.0.1:99999/x.zip", "https://[::1/x.zip"])
def test_an_impossible_address_is_not_tried_again(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching.time, "sleep", lambda _: pytest.fail("it was tried again"))
    with pytest.raises(UserError, match="InvalidURL"):
        fetch(RemoteFile("x.zip", address), tmp_path / "x.zip")


def test_https_never_leads_to_http() -> None:
    class Answer:
        history = ()
        url, status_code, reason = "http://mirror/x", 200, "OK"
        headers: dict[str, str] = {}

    first = Answer()
    first.url = "https://home/x"
    second = Answer()
    second.history = (first,)  # type: ignore[assignment]
    with pytest.raises(UserError, match="not encrypted"):
        fetching._check_answer(RemoteFile("x", "https://home/x"), second)
