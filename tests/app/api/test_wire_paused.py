"""A client that reads nothing is asked for nothing more: what it sends meanwhile is held, and answered once it reads."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from app.api.shortcut import Shortcut
from app.api.wire import Wire
from app.db import connect
from app.inference.catalog import Catalog
from app.registry.blobs import Blobs
from app.registry.registry import Registry
from app.settings import Settings
from export.bundle import MODEL

BODY = json.dumps({"inputs": [{"name": "input", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}).encode()
REQUEST = b"POST /v2/models/affine/infer HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)


async def never(_scope: Any, _receive: Any, _send: Any) -> None:
    """The application, which the short cut goes past."""
    raise AssertionError


class Kept(asyncio.Transport):
    """Keeps what is written, and says that it is full while or after it was, as a transport may."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = 0
        self.full: Callable[[], None] | None = None

    def write(self, data: Any) -> None:
        self.answers += bytes(data).startswith(b"HTTP/1.1 200 ")
        if self.full is not None:
            self.full()

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


@pytest.mark.parametrize("during_the_write", [True, False])
@pytest.mark.parametrize("full_at", [0, 1])
def test_nothing_is_answered_to_a_client_that_does_not_read(
    tmp_path: Path, models: Any, settings_with: Callable[..., Settings], during_the_write: bool, full_at: int
) -> None:
    database = connect(tmp_path)
    registry = Registry(database, Blobs(tmp_path / "blobs"))
    artifact = models.affine()
    registry.publish("affine", artifact.manifest, {MODEL: artifact.model})
    registry.promote("affine", "1", why="first", who="test")
    settings = settings_with()
    config = Config(app=never, access_log=False, log_config=None)
    config.load()

    async def turns() -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    async def answers() -> list[int]:
        catalog = Catalog(registry, settings)
        await catalog.start()
        wire = Wire(Shortcut(catalog, settings, None, Counter()), config, ServerState(), {}, asyncio.get_running_loop())
        kept, counts = Kept(), []
        wire.connection_made(kept)
        for number in range(4):
            if number == full_at and during_the_write:
                kept.full = wire.pause_writing
            wire.data_received(REQUEST)
            await turns()
            counts.append(kept.answers)
            if number == full_at:
                kept.full = None
                if not during_the_write:
                    wire.pause_writing()
        wire.resume_writing()
        for _ in range(4):
            await turns()
        wire.connection_lost(None)
        return [*counts, kept.answers]

    assert asyncio.run(answers()) == ([1, 2, 2, 2, 4] if full_at else [1, 1, 1, 1, 4])
    database.dispose()
