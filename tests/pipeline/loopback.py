"""A web server on this machine whose answers a test decides."""

import hashlib
import http.server
from dataclasses import dataclass, field
from typing import Any

DATA = bytes(range(256)) * 4096


@dataclass
class Page:
    """How the server answers for one path."""

    data: bytes = DATA
    status: int = 200
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    """bytes that the first, second ... answer sends before the connection ends"""
    headers: dict[str, str] = field(default_factory=dict)
    changes_to: bytes = b""
    """what the file becomes after the first answer"""
    length: bool = True
    chunks: int = 0
    """bytes of each chunk in place of a length, as servers send what they do not measure"""
    etag: bool = True
    total: str = ""
    """what stands for the length in Content-Range; empty: the length"""
    keeps_changing: bool = False
    """a new content with each answer, and no heed to If-Range"""


class Server(http.server.ThreadingHTTPServer):
    """Answers by `pages` and keeps the requests in `log`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: dict[str, Page] = {}
        self.log: list[tuple[str, str]] = []

    def address(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET(with_body=False)

    def do_GET(self, with_body: bool = True) -> None:
        wanted = self.headers.get("Range", "")
        self.server.log.append((self.path, wanted))
        page = self.server.pages.get(self.path) or Page(b"", 404)
        data, status, start = page.data, page.status, 0
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        changed = self.headers.get("If-Range", etag) != etag and not page.keeps_changing
        if wanted and page.ranges and status == 200 and not changed:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            status = 206 if start < len(data) else 416
        self.send_response(status)
        if status == 206:
            total = page.total or len(data)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{total}")
        body = data[start:] if status != 416 else b""
        if page.length:
            self.send_header("Content-Length", str(len(body)))
        tags = {"ETag": etag} if page.etag else {}
        for key, value in {**tags, **page.headers}.items():
            self.send_header(key, value)
        if page.chunks:
            self.send_header("Transfer-Encoding", "chunked")
            parts = [body[i : i + page.chunks] for i in range(0, len(body), page.chunks)]
            body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in [*parts, b""])
        self.end_headers()
        if with_body:
            self.wfile.write(body[: page.cuts.pop(0)] if page.cuts else body)
            page.data = page.changes_to or page.data
            if page.keeps_changing:
                page.data = page.data[1:] + page.data[:1]
        self.close_connection = True
