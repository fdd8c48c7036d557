"""The console: a page of static files, read once into memory. Nothing is built, and nothing is loaded from elsewhere.

Its security headers are those that `app.api.guard` gives every page; the files keep to them (no inline script or style).
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

from fastapi import APIRouter, Request, Response

from app.errors import NotFoundError

STATIC = Path(__file__).parent / "static"
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
# "Ask again before use": with the entity tag that costs a 304, and a new release is seen at once.
CACHE_CONTROL = "no-cache"


class Asset(NamedTuple):
    """One file of the page: its bytes, media type and entity tag."""

    content: bytes
    media_type: str
    etag: str


def assets() -> dict[str, Asset]:
    """Return every file of the page by its path below ``static``."""
    found: dict[str, Asset] = {}
    for path in sorted(STATIC.rglob("*")):
        if path.suffix in TYPES:
            content = path.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found[path.relative_to(STATIC).as_posix()] = Asset(content, TYPES[path.suffix], etag)
    return found


def router() -> APIRouter:
    """Return the routes ``/`` and ``/console/static/...``; they need no key, since they hold no data."""
    routes = APIRouter(include_in_schema=False)
    found = assets()

    @routes.api_route("/", methods=["GET", "HEAD"])
    def page(request: Request) -> Response:
        return _answer(request, found["index.html"])

    @routes.api_route("/console/static/{path:path}", methods=["GET", "HEAD"])
    def static(request: Request, path: str) -> Response:
        if path not in found:
            raise NotFoundError(f"the console has no file {path!r}")
        return _answer(request, found[path])

    return routes


def _answer(request: Request, asset: Asset) -> Response:
    headers = {"Cache-Control": CACHE_CONTROL, "ETag": asset.etag}
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if known & {asset.etag, "*"}:
        return Response(status_code=304, headers=headers)
    return Response(asset.content, headers=headers, media_type=asset.media_type)
