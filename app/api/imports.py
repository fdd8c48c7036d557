"""Models from elsewhere over HTTP: queued for a worker, which judges them, and answered when that is done or has taken long enough."""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from app.api.promotion import Promotion
from app.errors import InvalidRequestError, UnavailableError
from app.jobs.admissions import FAILED, SUCCEEDED, WAITING, Admissions
from app.registry.shelf import Shelf, Stored
from export.bundle import MODEL

CLAIM_SECONDS: Final = 15.0
POLL_SECONDS: Final = 0.1
NOBODY: Final = (
    "No worker takes up the import: models are judged outside the serving process, so start one (`specnorm worker`,"
    " or SPECNORM_WORKER=local), with the extra `train` installed."
)


class Imports:
    """Takes models in; one that no worker takes up within :data:`CLAIM_SECONDS` is withdrawn."""

    def __init__(self, admissions: Admissions, blobs: Shelf, promotion: Promotion) -> None:
        self.admissions = admissions
        self.blobs = blobs
        self._promotion = promotion

    async def submit(self, model: str, files: Mapping[str, Stored], *, wait: float, key: str | None = None) -> dict[str, Any]:
        """Queue the stored ``files`` (by name) and return the import's object once it has ended, or after ``wait`` seconds.

        Raises:
            InvalidRequestError: it is not admitted, and why.
            UnavailableError: nobody is there to judge it; it is withdrawn.
        """
        found = await asyncio.to_thread(self.admissions.create, model, files, key=key)
        now = asyncio.get_running_loop().time
        begun = now()
        while found["status"] not in {SUCCEEDED, FAILED} and now() - begun < wait:
            ignored = found["status"] == WAITING and now() - begun >= CLAIM_SECONDS
            if ignored and await asyncio.to_thread(self.admissions.withdraw, found["id"], NOBODY):
                raise UnavailableError(NOBODY)
            await asyncio.sleep(POLL_SECONDS)
            found = await asyncio.to_thread(self.admissions.get, found["id"])
        if found["status"] == FAILED:
            raise InvalidRequestError(found["error"])
        if found["status"] == SUCCEEDED:
            await self._promotion.catch_up(model)
        return found

    async def load(self, model: str, content: bytes, *, wait: float, who: str) -> None:
        """Judge one ONNX file, publish it as the next version of ``model``, and make it live.

        Raises:
            InvalidRequestError, UnavailableError: as :meth:`submit`; it is not judged in time.
        """
        stored = await asyncio.to_thread(self.blobs.put, content)
        found = await self.submit(model, {MODEL: stored}, wait=wait)
        if found["status"] != SUCCEEDED:
            raise UnavailableError(f"The model is still being judged as {found['id']}: GET /admin/imports/{found['id']} tells of it.")
        await self._promotion.promote(model, found["version"], who=who, why="loaded with its files")
