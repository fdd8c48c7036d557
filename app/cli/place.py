"""The registry that a command speaks to: of a workspace, or of a running service, with the same words."""

import io
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from app.cli.remote import Service
from app.cli.workspace import registry
from app.cli.workspace import settings as read_settings
from app.errors import InvalidRequestError, NotFoundError
from export.bundle import MANIFEST, Manifest, parse

MOST_BYTES = 4 * 2**30
WHO = "specnorm models"


class Place(Protocol):
    """What the commands ask of either."""

    def models(self) -> list[str]: ...  # noqa: D102 - as of ``app.registry``

    def versions(self, model: str) -> list[str]: ...  # noqa: D102

    def resolve(self, name: str) -> tuple[str, str | None]: ...  # noqa: D102

    def manifest(self, model: str, version: str) -> Manifest: ...  # noqa: D102

    def files(self, model: str, version: str) -> dict[str, bytes]: ...  # noqa: D102

    def set_alias(self, model: str, alias: str, version: str, *, who: str) -> str | None: ...  # noqa: D102

    def remove_alias(self, model: str, alias: str) -> str: ...  # noqa: D102


class Remote:
    """The registry of a running service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @cached_property
    def _known(self) -> dict[str, dict[str, Any]]:
        return {row["name"]: row for row in self._service.get("/admin/models")}

    def models(self) -> list[str]:
        """Return the names of all models."""
        return sorted(self._known)

    def versions(self, model: str) -> list[str]:
        """Return the versions of a model, oldest first."""
        if model not in self._known:
            raise NotFoundError(f"there is no model {model[:80]!r}")
        return [str(version) for version in self._known[model]["versions"]]

    def resolve(self, name: str) -> tuple[str, str | None]:
        """Return the model and version that ``name`` means."""
        found = self._service.get("/admin/resolve", name=name)
        return found["model"], found["version"]

    def manifest(self, model: str, version: str) -> Manifest:
        """Return the manifest of a version."""
        return parse(self._bundle(model, version)[MANIFEST])

    def files(self, model: str, version: str) -> dict[str, bytes]:
        """Return the files of a version's bundle."""
        files = self._bundle(model, version)
        return {name: content for name, content in files.items() if name != MANIFEST}

    def set_alias(self, model: str, alias: str, version: str, *, who: str) -> str | None:
        """Point an alias at a version; who does so, the service knows by the key."""
        answer = self._service.call("PUT", f"/admin/models/{model}/aliases/{alias}", json={"version": version}).json()
        previous: str | None = answer.get("previous_version")
        return previous

    def remove_alias(self, model: str, alias: str) -> str:
        """Forget an alias."""
        answer = self._service.call("DELETE", f"/admin/models/{model}/aliases/{alias}").json()
        return str(answer.get("version", ""))

    def _bundle(self, model: str, version: str) -> dict[str, bytes]:
        from app.registry.archive import unpack  # noqa: PLC0415 - loaded by those commands that need it

        packed = io.BytesIO(self._service.content(f"/admin/models/{model}/versions/{version}/bundle"))
        return {name: b"".join(pieces) for name, pieces in unpack(packed, limit=MOST_BYTES)}


def place(workspace: Path | None, url: str | None) -> Place:
    """Return the registry of a running service, or of a workspace that is there: these commands look, they do not make one."""
    return Remote(Service(url)) if url else registry(existing(workspace))


def existing(workspace: Path | None) -> Path:
    """Return the folder of a workspace, which must be there."""
    folder = read_settings(workspace=workspace).workspace
    if not folder.is_dir():
        raise InvalidRequestError(f"There is no workspace {folder}: say where it is with --workspace.")
    return folder


def version_of(where: Place, name: str) -> tuple[str, str]:
    """Return model and version of ``NAME``, ``NAME:VERSION`` or ``NAME@ALIAS``."""
    model, version = where.resolve(name)
    if version is None:
        raise NotFoundError(f"model {model!r} has no live version: name one, as in {model}:1")
    return model, version
