"""What the registry holds, for whoever only looks: models, versions, what is live, aliases, and the files of a bundle."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, BinaryIO, TypeVar

import orjson
from sqlalchemy import Engine, Row, select

from app.db import models, reading, versions
from app.errors import CorruptError, NotFoundError
from app.registry import aliases, live
from app.registry.artifact import Artifact
from app.registry.shelf import Shelf
from app.registry.store import Store
from export.bundle import MODEL, BundleError, Manifest, digest, parse

T = TypeVar("T")


class Contents:
    """The models of a workspace, to be read. Safe to share between threads and processes: the truth is in the database.

    It is the ``Source`` of the inference catalog.
    """

    def __init__(self, database: Engine, store: Store, *, quota: int | None = None) -> None:
        self.database = database
        self.blobs = Shelf(database, store, quota=quota)

    def models(self) -> list[str]:
        """Return the names of all models, sorted."""
        with reading(self.database) as connection:
            return list(connection.scalars(select(models.c.name).order_by(models.c.name)))

    def versions(self, model: str) -> list[str]:
        """Return the versions of ``model``, oldest first.

        Raises:
            NotFoundError: there is no such model.
        """
        with reading(self.database) as connection:
            live.known(connection, model)
            query = select(versions.c.version).where(versions.c.model == model).order_by(versions.c.version)
            return [str(version) for version in connection.scalars(query)]

    def live(self, model: str) -> str | None:
        """Return the live version of ``model``, or None where none was promoted yet.

        Raises:
            NotFoundError: there is no such model.
        """
        with reading(self.database) as connection:
            return live.text(live.known(connection, model).live)

    def live_versions(self) -> dict[str, str | None]:
        """Return the live version of every model, in one look."""
        with reading(self.database) as connection:
            return {row.name: live.text(row.live) for row in connection.execute(select(models).order_by(models.c.name))}

    def manifest(self, model: str, version: str) -> Manifest:
        """Return the manifest of a version, its sha256 checked.

        Raises:
            NotFoundError: there is no such model or version.
            CorruptError: the stored text is not the one that was published.
        """
        with reading(self.database) as connection:
            return _manifest(live.find(connection, model, version))

    def file(self, model: str, version: str, name: str) -> bytes:
        """Return a file of a version's bundle, its sha256 checked against the manifest.

        Raises:
            NotFoundError: there is no such version, or its bundle has no such file.
            CorruptError: the stored bytes have changed.
        """
        return self._content(self.manifest(model, version), model, version, name)

    def opener(self, model: str, version: str) -> Callable[[str], BinaryIO]:
        """Return what opens a file of a version's bundle, checked like :meth:`file`."""
        manifest = self.manifest(model, version)
        return lambda name: self._read(self.blobs.open, manifest, f"{model}:{version}", name)

    def files(self, model: str, version: str) -> dict[str, bytes]:
        """Return every file of a version's bundle, checked like :meth:`file`."""
        manifest = self.manifest(model, version)
        return {name: self._content(manifest, model, version, name) for name in manifest.files}

    def artifact(self, model: str, version: str) -> Artifact:
        """Return what serving needs of a version.

        Raises:
            NotFoundError: there is no such model or version.
            CorruptError: a stored file is missing or has changed.
        """
        manifest = self.manifest(model, version)
        return Artifact(manifest, self._content(manifest, model, version, MODEL))

    def everywhere(self) -> dict[str, dict[str, int]]:
        """Return of every model every version, oldest first, with when it was made, in one look."""
        found: dict[str, dict[str, int]] = {}
        query = select(models.c.name, versions.c.version, versions.c.created).outerjoin(versions, versions.c.model == models.c.name)
        with reading(self.database) as connection:
            for name, version, created in connection.execute(query.order_by(models.c.name, versions.c.version)):
                found.setdefault(name, {}).update({} if version is None else {str(version): created})
        return found

    def describe(
        self, model: str, *, manifests: bool = False, after: int | None = None, limit: int | None = None, newest_first: bool = False
    ) -> list[dict[str, Any]]:
        """Return one line about each version of ``model``.

        Args:
            model: name of the model.
            manifests: whether each line has the whole manifest.
            after: only those that come after this version.
            limit: most lines to return.
            newest_first: order by falling number.

        Raises:
            NotFoundError: there is no such model.
        """
        number = versions.c.version
        query = select(versions).where(versions.c.model == model).order_by(number.desc() if newest_first else number).limit(limit)
        if after is not None:
            query = query.where(number < after if newest_first else number > after)
        with reading(self.database) as connection:
            live.known(connection, model)
            rows = connection.execute(query).all()
        return [_line(row, manifests=manifests) for row in rows]

    def line(self, model: str, version: str) -> dict[str, Any]:
        """Return the line about one version, or raise NotFoundError."""
        with reading(self.database) as connection:
            return _line(live.find(connection, model, version), manifests=False)

    def previous(self, model: str) -> str:
        """Return the version that :meth:`rollback` would make live.

        Raises:
            NotFoundError: there is no such model.
            ConflictError: no other version was live before.
        """
        with reading(self.database) as connection:
            return live.previous(connection, model)

    def history(self, model: str, *, after: int = 0, limit: int | None = None) -> list[dict[str, Any]]:
        """Return who made what live when and why, oldest first: up to ``limit`` moves with a number above ``after``."""
        with reading(self.database) as connection:
            live.known(connection, model)
            rows = live.moves(connection, model, after=after, limit=limit)
        return [
            {"number": row.number, "at": row.at, "what": row.what, "who": row.who, "why": row.why}
            | {"from": live.text(row.before), "to": str(row.after)}
            for row in rows
        ]

    def aliases(self) -> dict[str, dict[str, str]]:
        """Return the version of every alias by model, in one look."""
        with reading(self.database) as connection:
            return aliases.everywhere(connection)

    def resolve(self, name: str) -> tuple[str, str | None]:
        """Return the model and version that ``name`` means: ``model@alias``, ``model:version``, or ``model`` for its live version.

        Raises:
            NotFoundError: there is no such model, version or alias.
        """
        with reading(self.database) as connection:
            return aliases.resolve(connection, name)

    def _content(self, manifest: Manifest, model: str, version: str, name: str) -> bytes:
        return self._read(self.blobs.get, manifest, f"{model}:{version}", name)

    @staticmethod
    def _read(how: Callable[[str], T], manifest: Manifest, owner: str, name: str) -> T:
        if name not in manifest.files:
            raise NotFoundError(f"{owner} has no file {name!r}; it has {', '.join(sorted(manifest.files))}")
        try:
            return how(manifest.files[name])
        except (NotFoundError, CorruptError) as error:
            raise CorruptError(f"{name} of {owner} cannot be read: {error}") from None


def _manifest(row: Row[Any]) -> Manifest:
    return _judged(f"{row.model}:{row.version}", row.manifest, row.manifest_digest)


def _judged(name: str, text: str, sha: str) -> Manifest:
    if digest(text.encode()) != sha:
        raise CorruptError(f"the manifest of {name} has changed since it was published")
    try:
        return parse(text)
    except BundleError as error:
        raise CorruptError(f"the manifest of {name} cannot be read: {error}") from None


def _line(row: Row[Any], *, manifests: bool) -> dict[str, Any]:
    known = {"version": str(row.version), "created": row.created, "parent": row.parent, "job": row.job}
    try:
        told = _told(f"{row.model}:{row.version}", row.manifest, row.manifest_digest)
    except CorruptError as error:
        return {**known, "corrupt": str(error)}
    return {**known, **told, **({"manifest": orjson.loads(row.manifest)} if manifests else {})}


@lru_cache(maxsize=4096)
def _told(name: str, text: str, sha: str) -> dict[str, Any]:
    """Return what a list says of a version; a manifest never changes, so it is read once for all lists."""
    manifest = _judged(name, text, sha)
    return {
        "model_digest": manifest.model_digest,
        "gradient_mode": manifest.gradient_mode,
        "lipschitz_bound": manifest.lipschitz.bound,
        "metrics": manifest.training.metrics if manifest.training else {},
    }
