"""An answer that is a file, sent piece by piece: no more than a piece of it is in memory."""

import io
from collections.abc import Iterator
from typing import BinaryIO

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.registry.store import CHUNK


class Download(StreamingResponse):
    """Sends ``stream`` from its beginning to its end, and closes it, also where the client has gone before that."""

    def __init__(self, stream: BinaryIO, *, media_type: str = "application/octet-stream", filename: str | None = None) -> None:
        self._stream = stream
        headers = {"Content-Length": str(stream.seek(0, io.SEEK_END))}
        if filename is not None:
            headers["Content-Disposition"] = f'attachment; filename="{filename}"'
        super().__init__(_pieces(stream), media_type=media_type, headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._stream.close()


def _pieces(stream: BinaryIO) -> Iterator[bytes]:
    stream.seek(0)
    while piece := stream.read(CHUNK):
        yield piece
