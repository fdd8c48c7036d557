"""`/docs`: the API as a page. Its script and style come with the package, so it needs no other server."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>specnorm: HTTP interface</title>
<link rel="icon" href="console/static/icon.svg">
<link rel="stylesheet" href="console/static/docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="console/static/docs/swagger-ui-bundle.js"></script>
<script src="console/static/docs/start.js"></script>
</body>
</html>
"""


async def _page(_request: Request) -> Response:
    return HTMLResponse(PAGE)


def route() -> Route:
    """Return the route of the page."""
    return Route("/docs", _page, methods=["GET"], include_in_schema=False)


def describe(api: FastAPI, inference: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """Return what makes the OpenAPI text of ``api`` and of ``inference``, which FastAPI does not route, as one."""

    def openapi() -> dict[str, Any]:
        if api.openapi_schema is None:
            text = get_openapi(title=api.title, version=api.version, description=api.description, routes=api.routes)
            api.openapi_schema = merge(text, inference())
        return api.openapi_schema

    return openapi


def merge(text: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return ``text`` with the paths, components and tags of ``other`` beside its own."""
    kinds = text.get("components", {}).keys() | other.get("components", {}).keys()
    components = {kind: {**text.get("components", {}).get(kind, {}), **other.get("components", {}).get(kind, {})} for kind in sorted(kinds)}
    components.setdefault("securitySchemes", {})["key"] = {"type": "http", "scheme": "bearer"}
    return {
        **text,
        "paths": {**other.get("paths", {}), **text.get("paths", {})},
        "components": components,
        "security": [{"key": []}],
        "tags": [*text.get("tags", []), *other.get("tags", [])],
    }
