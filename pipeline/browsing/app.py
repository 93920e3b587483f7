"""The web application of the browser: pages and JSON for requests from this machine alone.

A page of somebody else can make a browser send requests here. So requests must name this machine
as their host (a foreign name that was led here does not), and what changes marks must come from
our own page. File names of requests are ids, looked up in the index, never paths.
"""

import functools
import secrets
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pipeline import images, labels, sample_views
from pipeline.browsing.index import Index, Order, Query, State
from pipeline.dataset import Sample
from pipeline.errors import UserError
from pipeline.marks import parse_mark
from pipeline.reading import parse_json

HOSTS = ["127.0.0.1", "localhost"]
FILES = {"/": ("index.html", "text/html"), "/browser.js": ("browser.js", "text/javascript"),
         "/browser.css": ("browser.css", "text/css")}  # fmt: skip
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
KEPT = {"Cache-Control": "private, max-age=3600"}  # addresses hold the number of this start
FRESH = {"Cache-Control": "no-store"}
MOST_LISTED = 500
MOST_BYTES = 64_000  # of a request
THUMBNAIL_PX, THUMBNAIL_QUALITY = 256, 80
THUMBNAILS_KEPT = 4000  # of about 10 kB
SHOWN_PX, SHOWN_QUALITY = 1600, 92
AT_ONCE = 4  # images that are decoded at the same time
KINDS = ("thumbnail", "image", "label", "source")


class Browser:
    """Answers requests about one index."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self.start = secrets.token_hex(4)
        self.ratio = ratio_of(index.samples[0])
        self._room = threading.BoundedSemaphore(AT_ONCE)
        self.thumbnail = functools.lru_cache(THUMBNAILS_KEPT)(self._thumbnail)

    def sample(self, request: Request) -> Sample:
        """Return the sample that a request names."""
        position = self.index.positions.get(request.query_params.get("id", ""))
        if position is None:
            raise HTTPException(404, "no such sample")
        return self.index.samples[position]

    def about_set(self, request: Request) -> Response:
        """Answer what the page needs to know once."""
        index = self.index
        return JSONResponse(
            {
                "start": self.start,
                "name": index.folder.name,
                "total": len(index.samples),
                "conditions": index.conditions,
                "classes": list(labels.CLASS_NAMES) if index.held is not None else [],
                "networks": index.networks,
                "has_source": index.source is not None,
                "ratio": self.ratio,
            },
            headers=FRESH,
        )

    def listed(self, request: Request) -> Response:
        """Answer a part of the samples that a query takes."""
        values = request.query_params
        try:
            query = query_of(values)
            offset, limit = int(values.get("offset", 0)), int(values.get("limit", 100))
            if offset < 0 or not 0 < limit <= MOST_LISTED:
                raise ValueError("offset or limit out of range")
        except ValueError as error:
            raise HTTPException(400, str(error)) from None
        positions = self.index.find(query)
        rows = [
            self.index.about(position) for position in positions[offset : offset + limit].tolist()
        ]
        return JSONResponse({"total": len(positions), "samples": rows}, headers=FRESH)

    def detail(self, request: Request) -> Response:
        """Answer what is known of one sample."""
        return JSONResponse(self.index.more_about(self.sample(request)), headers=FRESH)

    def view(self, request: Request) -> Response:
        """Answer an image of a sample: small, whole, its label in colours, its source."""
        kind, sample = request.path_params["kind"], self.sample(request)
        if kind not in KINDS:
            raise HTTPException(404, f"one of {', '.join(KINDS)}")
        try:
            with self._room:
                if kind == "thumbnail":
                    data = self.thumbnail(sample.id)
                else:
                    data = self._whole(sample, kind)
        except UserError as error:
            raise HTTPException(422, str(error)) from None
        media = "image/png" if kind == "label" else "image/jpeg"
        return Response(data, media_type=media, headers=KEPT)

    def _thumbnail(self, key: str) -> bytes:
        image = images.read_image(self.index.samples[self.index.positions[key]].image)
        return sample_views.encode_jpeg(sample_views.shrink(image, THUMBNAIL_PX), THUMBNAIL_QUALITY)

    def _whole(self, sample: Sample, kind: str) -> bytes:
        array: np.ndarray | None = None
        if kind == "label" and sample.label is not None:
            label = sample_views.shrink(labels.read_label(sample.label), SHOWN_PX)
            return images.encode_png(labels.colorize(label))
        if kind == "image":
            array = images.read_image(sample.image)
        elif kind == "source" and self.index.source is not None:
            array = sample_views.source_image(sample, self.index.source)
        if array is None:
            raise HTTPException(404, f"the sample has no {kind}")
        return sample_views.encode_jpeg(sample_views.shrink(array, SHOWN_PX), SHOWN_QUALITY)

    async def mark(self, request: Request) -> Response:
        """Save the mark of a sample."""
        require_own_page(request)
        sample = self.sample(request)
        try:
            mark = parse_mark(parse_json(await body_of(request), dict))
        except ValueError as error:
            raise HTTPException(400, str(error)) from None
        try:
            await run_in_threadpool(self.index.set_mark, sample.id, mark)
        except OSError as error:
            raise HTTPException(507, f"marks cannot be saved: {error.strerror}") from None
        return JSONResponse(self.index.about(self.index.positions[sample.id]), headers=FRESH)


def ratio_of(sample: Sample) -> float:
    """Return height / width of an image, by which the page shapes its cards."""
    try:
        width, height = images.image_size(sample.image)
    except UserError:
        return 0.5
    return min(2.0, max(0.25, height / width))


def query_of(values: Mapping[str, str]) -> Query:
    """Return the query of the parameters of an address, or raise `ValueError`."""
    query = Query(
        condition=values.get("condition", ""),
        class_id=int(values.get("class") or -1),
        low=float(values.get("low") or -1),
        high=float(values.get("high") or -1),
        text=values.get("text", ""),
        state=values.get("state") or "all",  # type: ignore[arg-type]  # checked below
        order=values.get("order") or "id",  # type: ignore[arg-type]
    )
    if query.state not in get_args(State) or query.order not in get_args(Order):
        raise ValueError("no such state or order")
    if query.class_id >= labels.NUM_CLASSES:
        raise ValueError("no such class")
    return query


def require_own_page(request: Request) -> None:
    """Refuse what a page of another origin sends, and what no script of a page would send."""
    own = f"http://{request.headers.get('host', '')}"
    origin = request.headers.get("origin", own)
    site = request.headers.get("sec-fetch-site", "same-origin")
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if origin != own or site != "same-origin" or kind != "application/json":
        raise HTTPException(403, "marks are set by the page of this program alone")


async def body_of(request: Request) -> bytes:
    """Return the body of a request, or refuse a large one before it is read."""
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > MOST_BYTES:
            raise HTTPException(413, f"a request has at most {MOST_BYTES} bytes")
    return data


def own_file(request: Request) -> Response:
    """Answer one of the files of the page."""
    name, media = FILES[request.url.path]
    path = Path(__file__).resolve().parent / name
    return Response(path.read_bytes(), media_type=media, headers=FRESH)


def no_icon(request: Request) -> Response:
    """Answer the request that every browser makes."""
    return Response(status_code=204, headers=KEPT)


class Headers:
    """Adds `HEADERS` to every answer."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on."""

        async def add(message: Any) -> None:
            if message["type"] == "http.response.start":
                more = [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        await self.app(scope, receive, add)


def said(request: Request, error: Exception) -> Response:
    """Answer an error as JSON, which the page shows."""
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code, headers=FRESH)
    return JSONResponse({"error": str(error)}, 409, headers=FRESH)


def make_app(index: Index) -> Starlette:
    """Return the application."""
    browser = Browser(index)
    routes = [
        *(Route(path, own_file) for path in FILES),
        Route("/favicon.ico", no_icon),
        Route("/api/set", browser.about_set),
        Route("/api/samples", browser.listed),
        Route("/api/sample", browser.detail),
        Route("/api/mark", browser.mark, methods=["POST"]),
        Route("/view/{kind}", browser.view),
    ]
    middleware = [
        Middleware(Headers),
        Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS, www_redirect=False),
    ]
    return Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers={HTTPException: said, UserError: said},
    )
