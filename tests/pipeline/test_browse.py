"""The browser: a real server on loopback, asked over HTTP and by a real Chromium."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest
from PIL import Image

from pipeline import labels, marks
from pipeline.dataset import open_dataset
from pipeline.images import read_image
from pipeline.marks import Mark

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

ROOT = Path(__file__).resolve().parent.parent.parent
CONDITIONS = ("clear", "fog", "night")
EVIL = "<img src=x onerror=document.title=1><script>document.title=2</script>"


class Server:
    """The program, started on a free port."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self.address = f"http://127.0.0.1:{port}/"

    def ask(
        self, path: str, body: bytes | None = None, *, host: str = "", **headers: str
    ) -> tuple[int, bytes, dict[str, str]]:
        """Return status, content and headers of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        with contextlib.closing(connection):
            sent = {"Host": host or f"127.0.0.1:{self.port}"}
            sent |= {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request("GET" if body is None else "POST", path, body, sent)
            answer = connection.getresponse()
            return answer.status, answer.read(), dict(answer.getheaders())

    def listed(self, **query: object) -> list[str]:
        """Return the ids that a query takes."""
        status, content, _ = self.ask(f"/api/samples?{urlencode(query)}")
        assert status == 200, content
        return [sample["id"] for sample in json.loads(content)["samples"]]

    def mark(self, key: str, value: object, **headers: str) -> tuple[int, str]:
        """Set a mark; return status and error."""
        sent = {"Content_Type": "application/json"} | headers
        status, content, _ = self.ask(
            f"/api/mark?{urlencode({'id': key})}", json.dumps(value).encode(), **sent
        )
        return status, json.loads(content).get("error", "")


@contextlib.contextmanager
def served(folder: Path, *flags: object) -> Iterator[Server]:
    command = [sys.executable, "pipeline/browse.py", folder, "--port", 0, *flags]
    process = subprocess.Popen(
        list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout
        line = process.stdout.readline()
        assert "http://127.0.0.1:" in line, process.communicate(timeout=60)
        yield Server(folder, int(line.split("127.0.0.1:")[1].split("/")[0]))
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert "Traceback" not in errors, errors


@pytest.fixture(scope="module")
def server(
    tiny_dataset: Callable[..., Path],
    add_scores: Callable[..., None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("browse") / "set"
    source = tiny_dataset(1, 32, 64)
    tiny_dataset(30, 32, 64, conditions=CONDITIONS, folder=folder)
    (file,) = folder.glob("metadata*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        row.pop("row_sha256")
        row["source_label"] = "labels/0000/00000000.png"
    rows[4]["prompt"] = EVIL
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    add_scores(folder / "quality", open_dataset(folder, labelled=True))
    with served(folder, "--source", source) as running:
        yield running


@pytest.fixture(autouse=True)
def no_marks(request: pytest.FixtureRequest) -> None:
    if "server" in request.fixturenames:
        server = request.getfixturevalue("server")
        for key in marks.read_marks(server.folder):
            assert server.mark(key, {})[0] == 200


def test_filters(server: Server) -> None:
    samples = {s.id: s for s in open_dataset(server.folder, labelled=True)}
    rows = map(json.loads, (server.folder / "quality" / "data.jsonl").read_text().splitlines())
    scores = {row["id"]: row["fidelity"]["judge"]["miou"] for row in rows}
    assert server.listed() == list(samples)
    assert server.listed(offset=5, limit=3) == list(samples)[5:8]
    assert server.listed(condition="fog") == [
        k for k, s in samples.items() if s.row["condition"] == "fog"
    ]
    held = [k for k, s in samples.items() if s.row["class_pixels"][6] > 0]
    assert server.listed(**{"class": 6}) == held
    assert server.listed(low=40, high=60) == [k for k, v in scores.items() if 40 <= v <= 60]
    assert server.listed(text="ONERROR") == ["00000004"]
    assert server.listed(order="worst") == sorted(scores, key=scores.__getitem__)
    assert server.listed(order="best", limit=1) == [max(scores, key=scores.__getitem__)]
    assert server.mark("00000002", {"excluded": True, "comment": "Two Moons"})[0] == 200
    assert server.listed(state="excluded") == server.listed(text="two moons") == ["00000002"]
    assert len(server.listed(state="kept")) == 29
    for bad in ({"state": "x"}, {"order": "x"}, {"class": 19}, {"limit": 0}, {"limit": 10**6},
                {"offset": -1}, {"low": "abc"}):  # fmt: skip
        assert server.ask(f"/api/samples?{urlencode(bad)}")[0] == 400, bad


def test_views_are_the_files(server: Server, tmp_path: Path) -> None:
    sample = open_dataset(server.folder, labelled=True)[3]
    status, content, headers = server.ask(f"/view/label?id={sample.id}")
    assert status == 200 and headers["content-type"] == "image/png"
    (tmp_path / "label.png").write_bytes(content)
    shown = np.array(Image.open(tmp_path / "label.png").convert("RGB"))
    assert np.array_equal(shown, labels.colorize(labels.read_label(sample.label)))
    for kind in ("image", "thumbnail", "source"):
        status, content, headers = server.ask(f"/view/{kind}?id={sample.id}")
        assert status == 200 and headers["content-type"] == "image/jpeg", kind
        (tmp_path / f"{kind}.jpg").write_bytes(content)
        assert read_image(tmp_path / f"{kind}.jpg").shape == (32, 64, 3)


def test_only_this_machine_and_this_page(server: Server) -> None:
    """DNS rebinding, pages of other origins, forms, paths."""
    key = "00000001"
    for host in ("evil.example", f"evil.example:{server.port}", "127.0.0.1.evil.example"):
        assert server.ask("/api/set", host=host)[0] == 400
        assert server.ask(f"/view/image?id={key}", host=host)[0] == 400
    assert server.ask("/api/set", host=f"localhost:{server.port}")[0] == 200
    mark = {"marked": True}
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"},
                    {"Origin": f"http://localhost:{server.port + 1}"},
                    {"Sec_Fetch_Site": "cross-site"}, {"Content_Type": "text/plain"},
                    {"Content_Type": "application/x-www-form-urlencoded"}):  # fmt: skip
        assert server.mark(key, mark, **headers)[0] == 403, headers
    assert not marks.read_marks(server.folder)
    assert server.mark(key, mark, Origin=f"http://127.0.0.1:{server.port}")[0] == 200
    before = sorted(path for path in server.folder.rglob("*"))
    for name in ("../quality/data", "..%2f..%2fetc/passwd", "/etc/passwd", "a\0b", "x" * 9999):
        assert server.ask(f"/view/image?{urlencode({'id': name})}")[0] == 404
        assert server.mark(name, mark)[0] == 404
    for path in ("/../../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/view/../../etc/passwd",
                 "/browser.js/../app.py", "/app.py", "/index.html", "/marks.json"):  # fmt: skip
        assert server.ask(path)[0] == 404, path
    assert sorted(path for path in server.folder.rglob("*")) == before
    _, _, headers = server.ask("/")
    assert "script-src 'self'" in headers["content-security-policy"]


@pytest.mark.parametrize(
    ("value", "status"),
    [([1], 400), ({"marked": 1}, 400), ({"comment": "x" * 2001}, 400), ({"more": True}, 400),
     ({"comment": "\ud800"}, 400), ({"comment": "x" * 70_000}, 413)],
    ids=["list", "number", "long", "unknown", "half", "large"],
)  # fmt: skip
def test_bad_marks_are_refused(server: Server, value: object, status: int) -> None:
    assert server.mark("00000000", value)[0] == status
    assert not marks.read_marks(server.folder)


def test_what_others_mark_meanwhile_is_kept(server: Server) -> None:
    assert server.mark("00000001", {"marked": True})[0] == 200
    other = {**marks.read_marks(server.folder), "00000009": Mark(comment="from elsewhere")}
    marks.write_marks(server.folder, other)
    assert server.listed(state="commented") == ["00000009"], "the page follows the file"
    assert server.mark("00000002", {"excluded": True})[0] == 200
    assert marks.read_marks(server.folder) == {**other, "00000002": Mark(excluded=True)}
    (server.folder / "marks.json").write_text("{")
    status, message = server.mark("00000003", {"marked": True})
    assert status == 409 and "marks.json: broken JSON" in message
    assert (server.folder / "marks.json").read_text() == "{", "nothing of others is overwritten"
    (server.folder / "marks.json").unlink()


def test_filter_mark_and_reload_by_keyboard(browser, server: Server) -> None:
    browser.open("about:blank")
    browser.events.clear()
    browser.resize(1280, 800)
    browser.open(server.address)
    cards = "document.querySelectorAll('.card img').length"
    browser.wait_for(f"{cards} > 10 && sampleAt(29)")
    browser.press("ArrowRight")
    browser.press("x")
    browser.press("ArrowRight")
    browser.press("m")
    browser.press("c")
    browser.wait_for("document.activeElement.id == 'comment'")
    browser.write("the wheel is missing")
    browser.press("Escape")
    browser.press("Escape")
    browser.wait_for("document.getElementById('viewer').hidden")
    browser.wait_for("saving.then(() => true)")
    assert marks.read_marks(server.folder) == {
        "00000001": Mark(excluded=True),
        "00000002": Mark(marked=True, comment="the wheel is missing"),
    }
    browser.press("/")
    browser.write("ONERROR")
    browser.wait_for(f"{cards} == 1")
    assert browser.evaluate("document.querySelector('.card img').alt") == EVIL
    browser.press("Escape")
    browser.press("Enter")
    for name in ("image", "over", "label", "source"):
        browser.wait_for(f"document.getElementById('{name}').naturalWidth == 64")
    assert browser.evaluate("document.getElementById('caption').textContent") == EVIL
    assert browser.evaluate("document.title") == "set - Streetforge"
    opacity = "getComputedStyle(document.getElementById('over')).opacity"
    assert browser.evaluate(opacity) == "0.45"
    browser.press("o")
    assert browser.evaluate(opacity) == "0"
    browser.call("Page.reload")
    browser.wait_for(f"document.readyState == 'complete' && window.shape && {cards} == 1")
    assert browser.evaluate("filters.elements.text.value") == "ONERROR", "the filter is kept"
    browser.evaluate("filters.elements.text.value = '', filters.elements.state.value = 'marked'")
    browser.evaluate("refresh()")
    browser.wait_for("document.querySelector('.card b').textContent == '\u2605\u270e'")
    assert browser.evaluate(cards) == 1
    logged = [
        e
        for e in browser.events
        if e.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown")
    ]
    assert not logged


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out(browser, server: Server, width: int) -> None:
    browser.resize(width, 800, dark=width == 390)
    browser.open(server.address)
    browser.wait_for("document.querySelectorAll('.card img').length > 10")
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    browser.press("Enter")
    browser.wait_for("!document.getElementById('viewer').hidden")
    assert browser.evaluate("document.getElementById('viewer').scrollWidth") == width
    browser.press("Escape")


def test_many_samples_exist_on_the_page_only_where_they_are_seen(
    browser, many_samples, server: Server, tmp_path: Path
) -> None:
    folder = many_samples(tmp_path / "many", server.folder, 3000)
    with served(folder) as running:
        browser.resize(1280, 800)
        browser.open(running.address)
        cards = "document.querySelectorAll('.card').length"
        browser.wait_for(f"{cards} > 10")
        for place in (0.5, 1):
            browser.evaluate(f"scroller = document.getElementById('scroller'), "
                             f"scroller.scrollTop = {place} * scroller.scrollHeight")  # fmt: skip
            wanted = "[...document.querySelectorAll('.card img')].every(i => i.naturalWidth)"
            browser.wait_for(
                f"chosen == 0 && document.querySelector('.card').dataset.key > '1' && {wanted}"
            )
            assert browser.evaluate(cards) < 80
        last = open_dataset(folder, labelled=True)[-1].id
        assert last in browser.evaluate("document.getElementById('grid').lastChild.textContent")


@pytest.mark.parametrize(
    ("flags", "message"),
    [(("none",), "none: no such folder"), ((".",), "no metadata.jsonl"),
     ((".", "--port", "70000"), "--port"), ((".", "--source", "none"), "none: no such folder")],
)  # fmt: skip
def test_bad_input_is_one_line(run_program, flags: tuple[str, ...], message: str) -> None:
    done = run_program("pipeline/browse.py", *flags, check=False)
    assert done.returncode == 2 and message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_port_in_use_is_one_line(run_program, server: Server) -> None:
    done = run_program("pipeline/browse.py", server.folder, "--port", server.port, check=False)
    assert done.returncode == 2 and "--port" in done.stderr and "in use" in done.stderr


def test_a_mark_that_cannot_be_saved_is_none(
    tiny_dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.browsing.index import Index

    folder = tiny_dataset(2, 32, 64)
    index = Index(folder, folder / "quality", None)

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(marks.files, "write_json", full)
    with pytest.raises(OSError, match="No space"):
        index.set_mark("00000000", Mark(marked=True))
    assert not index.marks and not (folder / "marks.json").exists()
