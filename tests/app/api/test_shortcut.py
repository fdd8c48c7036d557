"""What the short cut knows of a message: which version answers it, by now, and what its answer is called."""

import asyncio
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from app.api.shortcut import Shortcut
from app.db import connect
from app.inference.catalog import Catalog
from app.registry.blobs import Blobs
from app.registry.registry import Registry
from app.settings import Settings
from export.bundle import MODEL

MESSAGE = b"POST /v2/models/affine%s/infer HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}"


def test_a_known_message_goes_to_the_version_that_is_live_by_now(
    tmp_path: Path, models: Any, settings_with: Callable[..., Settings]
) -> None:
    database = connect(tmp_path)
    registry = Registry(database, Blobs(tmp_path / "blobs"))
    for number in (1.0, 2.0):
        artifact = models.affine(number)
        registry.publish("affine", artifact.manifest, {MODEL: artifact.model})
    settings = settings_with()

    async def walk() -> list[str | None]:
        catalog = Catalog(registry, settings)
        shortcut = Shortcut(catalog, settings, None, Counter())
        loop = asyncio.get_running_loop()

        def asked(data: bytes) -> str | None:
            """Return which version is asked, by what a connection does."""
            end = data.find(b"\r\n\r\n") + 4
            found = shortcut.messages.get(data[:end]) or shortcut.message(data, end, loop.time())
            return found.served.version if found else None

        told = [asked(MESSAGE % b"")]
        for version in ("1", "2", "1"):
            await catalog.go_live("affine", version)
            told += [asked(MESSAGE % b""), asked(MESSAGE % b""), asked(MESSAGE % b"/versions/2")]
        await catalog.forget("affine", "2")
        told.append(asked(MESSAGE % b"/versions/2"))
        await catalog.unload("affine")
        return [*told, asked(MESSAGE % b"")]

    assert asyncio.run(walk()) == [None, "1", "1", None, "2", "2", "2", "1", "1", "2", None, None]
    database.dispose()


def test_no_two_requests_of_a_service_have_one_id(tmp_path: Path, models: Any, settings_with: Callable[..., Settings]) -> None:
    database = connect(tmp_path)
    settings = settings_with()
    catalog = Catalog(Registry(database, Blobs(tmp_path / "blobs")), settings)
    ours, others = (list(islice(Shortcut(catalog, settings, None, Counter()).identities, 1000)) for _ in range(2))
    assert len({*ours, *others}) == 2000
    assert {len(one) for one in ours} == {32}
    assert len({one[:16] for one in ours}) == 1
    database.dispose()
