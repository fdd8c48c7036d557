"""One serving process: alone in `specnorm serve`, or one of several, each `python -m app.cli.process DESCRIPTOR`."""

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from app.errors import SpecnormError, UnavailableError

if TYPE_CHECKING:
    from app.settings import Settings
    from app.siblings import Siblings


def listen(settings: "Settings", *, shared: bool = False) -> socket.socket:
    """Return a listening socket; a ``shared`` one of several processes, which the kernel spreads the connections over.

    Raises:
        UnavailableError: the address cannot be bound.
    """
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048, reuse_port=shared)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise UnavailableError(f"{settings.host}:{settings.port} cannot be bound: {why}; choose another with --port.") from None


@contextlib.contextmanager
def reserve(settings: "Settings", port: int | None) -> Iterator[socket.socket | None]:
    """Hold a port, 0 being any, for listeners that share it; it takes no connection itself. None where no port is wanted."""
    if port is None:
        yield None
        return
    family = socket.getaddrinfo(settings.host, port, type=socket.SOCK_STREAM)[0][0]
    with socket.socket(family, socket.SOCK_STREAM) as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            held.bind((settings.host, port))
        except OSError as error:
            raise UnavailableError(f"{settings.host}:{port} cannot be bound: {error.strerror}; choose another.") from None
        yield held


def run(settings: "Settings", listener: socket.socket, started: Callable[[], None], siblings: "Siblings | None" = None) -> None:
    """Serve until a signal asks to stop; then answer what is in flight and return."""
    import uvicorn  # noqa: PLC0415 - loaded by those commands that need it

    from app.main import create_service  # noqa: PLC0415
    from app.observability import configure_logging  # noqa: PLC0415

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                gc.collect()
                gc.freeze()  # what is loaded by now stays: no collection needs to walk it again
                started()
                if siblings is not None:
                    await siblings.serving()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            service.end_streams()
            await super().shutdown(sockets)

    configure_logging(settings.log_level, settings.log_format)
    service = create_service(settings, siblings)
    config = uvicorn.Config(
        service.app,
        loop="uvloop",
        http=service.http,
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=int(settings.drain_seconds) + 1,
    )
    server = Server(config)

    def stop(*_: object) -> None:
        server.should_exit = True

    # uvicorn raises the signal again when it is done; a stop that was asked for is no failure.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    server.run([listener])
    if not server.started:
        raise UnavailableError("The service did not start; the lines above say why.")


def main(descriptor: int) -> None:
    """Be one of several processes; the settings are those of the environment."""
    from app.settings import Settings  # noqa: PLC0415
    from app.siblings import Siblings  # noqa: PLC0415

    settings = Settings()
    end = socket.socket(fileno=descriptor)
    run(settings, listen(settings, shared=True), lambda: None, Siblings(end, _stop))


def _stop() -> None:
    """End like a signal had come: the parent has gone, and nobody else would see to it."""
    asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]))
    except SpecnormError as error:
        sys.exit(f"specnorm: {error}")
