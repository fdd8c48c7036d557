"""A running service, as commands call it."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from app.errors import InvalidRequestError, UnavailableError

Url = Annotated[str | None, typer.Option("--url", envvar="SPECNORM_URL", help="Address of a running service.")]

DEFAULT = "http://127.0.0.1:8000"
NO_CONTENT = 204
PATIENCE = 30
"""Seconds for which a stream that broke off is asked for again."""


class Service:
    """HTTP calls that either succeed or raise the service's own sentence. The key is SPECNORM_API_KEY."""

    def __init__(self, url: str | None) -> None:
        import httpx  # noqa: PLC0415 - a tenth of a second that only these commands need

        self.url = (url or DEFAULT).rstrip("/")
        key = os.environ.get("SPECNORM_API_KEY")
        local = urlsplit(self.url).hostname in {"localhost", "127.0.0.1", "::1"}
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(10, read=600),
            trust_env=not local,  # a proxy cannot reach this machine's loopback
        )

    def get(self, path: str, **query: Any) -> Any:
        """Return the JSON that ``path`` answers."""
        return self.call("GET", path, params={name: value for name, value in query.items() if value is not None}).json()

    def pages(self, path: str) -> Iterator[Any]:
        """Yield the items of a list, page after page."""
        following: str | None = path
        while following is not None:
            answer = self.call("GET", following)
            yield from answer.json()
            following = answer.links.get("next", {}).get("url")

    def post(self, path: str, body: Any = None, **options: Any) -> Any:
        """Post JSON, or the multipart ``files`` among ``options``, and return the JSON of the answer."""
        return self.call("POST", path, **({"json": body} if body is not None else {}), **options).json()

    def content(self, path: str) -> bytes:
        """Return the bytes that ``path`` answers."""
        content: bytes = self.call("GET", path).content
        return content

    def upload(self, path: Path) -> str:
        """Upload a data set and return its id."""
        with path.open("rb") as stream:
            answer = self.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": (path.name, stream)})
        return str(answer["id"])

    def events(self, path: str) -> Iterator[dict[str, Any]]:
        """Yield the events of a stream to its end; where it breaks off it is taken up after the last one seen.

        Raises:
            UnavailableError: nobody answers, or nobody does any more.
            InvalidRequestError: the service refuses, in its own words.
        """
        import httpx  # noqa: PLC0415

        last, failures = None, 0
        while True:
            try:
                with self._http.stream("GET", path, params={} if last is None else {"after": last}) as response:
                    if response.status_code == NO_CONTENT:
                        return
                    if not response.is_success:
                        response.read()
                        raise InvalidRequestError(f"The service answered {response.status_code}: {_sentence(response)}")
                    for line in response.iter_lines():
                        if line.startswith("data:"):
                            event = json.loads(line[5:])
                            last, failures = event["id"], 0
                            yield event
            except httpx.HTTPError as error:
                failures += 1
                if last is None or failures > PATIENCE:
                    raise UnavailableError(f"No service answers at {self.url}: {error}") from None
                time.sleep(1)

    def call(self, method: str, path: str, **options: Any) -> Any:
        """Return the response.

        Raises:
            UnavailableError: nobody answers.
            InvalidRequestError: the service refuses, in its own words.
        """
        import httpx  # noqa: PLC0415

        try:
            response = self._http.request(method, path, **options)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UnavailableError(f"No service answers at {self.url}: {error}") from None
        if response.is_success:
            return response
        raise InvalidRequestError(f"The service answered {response.status_code}: {_sentence(response)}")


def _sentence(response: Any) -> str:
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        return str(response.reason_phrase)
    return str(error["message"] if isinstance(error, dict) else error)
