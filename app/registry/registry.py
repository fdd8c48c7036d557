"""Models and their versions: published once, never changed, and at most one of each model live."""

import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Connection, Engine, Row, delete, insert, select, update

from app.db import jobs, models, reading, version_files, versions
from app.errors import ConflictError, CorruptError, InvalidRequestError, NotFoundError
from app.registry import live
from app.registry.artifact import Artifact
from app.registry.blobs import Blobs
from export.bundle import MODEL, BundleError, Manifest, digest, parse

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
OPEN_STATES = ("validating_files", "queued", "running")

Within = Callable[[Connection, str], None]


class Registry:
    """The models of a workspace. Safe to share between threads and processes: the truth is in the database.

    It is the ``Source`` of the inference catalog.
    """

    def __init__(self, database: Engine, blobs: Blobs) -> None:
        self.database = database
        self.blobs = blobs

    def publish(
        self,
        model: str,
        manifest: Manifest,
        files: Mapping[str, bytes],
        *,
        job: str | None = None,
        parent: str | None = None,
        within: Within | None = None,
    ) -> str:
        """Record a finished bundle as the next version of ``model`` and return that version. It is not live yet.

        Versions start at 1 and are never reused. Publishing for the same ``job`` twice returns the version that it
        already has, so a job that was taken over is harmless.

        Args:
            model: name of the model, new or known.
            manifest: what is said of the bundle.
            files: the content of every file that the manifest names.
            job: the job that made it.
            parent: the version that it was trained from, as ``name:version``, or a version of the same model.
            within: runs in the same transaction, given the version; what it raises undoes the publication.

        Raises:
            InvalidRequestError: the name is none, or ``files`` are not those of the manifest.
            StorageFullError: the disk is full; nothing was published.
        """
        check_name(model)
        actual = {name: digest(content) for name, content in files.items()}
        if actual != manifest.files:
            raise InvalidRequestError("the files are not those whose sha256 the manifest gives")
        for content in files.values():
            self.blobs.put(content)
        with self.database.begin() as connection:
            version = _version_of_job(connection, model, job) or self._insert(connection, model, manifest, job=job, parent=parent)
            if within is not None:
                within(connection, version)
        return version

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

    def describe(self, model: str, *, manifests: bool = False) -> list[dict[str, Any]]:
        """Return one line about each version of ``model``, oldest first, with its whole manifest if that is wanted."""
        with reading(self.database) as connection:
            live.known(connection, model)
            rows = connection.execute(select(versions).where(versions.c.model == model).order_by(versions.c.version)).all()
        return [_line(row, manifests=manifests) for row in rows]

    def promote(self, model: str, version: str, *, why: str, who: str) -> str | None:
        """Make ``version`` the live one and return the one that was; promoting the live version again changes nothing.

        Raises:
            NotFoundError: there is no such model or version.
        """
        with self.database.begin() as connection:
            return live.promote(connection, model, version, why=why, who=who)

    def rollback(self, model: str, *, who: str, expected: str | None = None) -> tuple[str, str]:
        """Go back to the version that was live before, and return it with the one that was live until now.

        Going back twice goes back two promotions; versions deleted since are passed over.

        Args:
            model: name of the model.
            who: who asks, for the history.
            expected: the version to arrive at, where the caller has looked (:meth:`previous`) and prepared it.

        Raises:
            NotFoundError: there is no such model.
            ConflictError: no other version was live before, or it is no longer the expected one.
        """
        with self.database.begin() as connection:
            until_now = str(live.known(connection, model).live)
            target = live.previous(connection, model)
            if expected not in {None, target}:
                raise ConflictError(f"model {model!r} was promoted meanwhile: try again")
            live.move(connection, model, target, what="rollback", why="rollback", who=who)
        return target, until_now

    def previous(self, model: str) -> str:
        """Return the version that :meth:`rollback` would make live.

        Raises:
            NotFoundError: there is no such model.
            ConflictError: no other version was live before.
        """
        with reading(self.database) as connection:
            return live.previous(connection, model)

    def history(self, model: str) -> list[dict[str, Any]]:
        """Return who made what live when and why, oldest first."""
        with reading(self.database) as connection:
            live.known(connection, model)
            rows = live.moves(connection, model)
        return [
            {"at": row.at, "what": row.what, "who": row.who, "why": row.why, "from": live.text(row.before), "to": str(row.after)}
            for row in rows
        ]

    def delete(self, model: str, version: str) -> None:
        """Remove a version for good; its number is not used again.

        Raises:
            NotFoundError: there is no such model or version.
            ConflictError: it is live, another version was trained from it, or a job is about to be.
        """
        name = f"{model}:{version}"
        with self.database.begin() as connection:
            row = live.find(connection, model, version)
            if live.known(connection, model).live == row.version:
                raise ConflictError(f"{name} is live: promote another version first")
            child = connection.execute(select(versions.c.model, versions.c.version).where(versions.c.parent == name)).first()
            if child is not None:
                raise ConflictError(f"{name} is the parent of {child.model}:{child.version}: it is kept as its origin")
            job = connection.scalar(select(jobs.c.id).where(jobs.c.parent == name, jobs.c.state.in_(OPEN_STATES)))
            if job is not None:
                raise ConflictError(f"{name} is what job {job} trains from: cancel the job or wait for it")
            connection.execute(delete(versions).where(versions.c.model == model, versions.c.version == row.version))

    def _insert(self, connection: Connection, model: str, manifest: Manifest, *, job: str | None, parent: str | None) -> str:
        number = connection.scalar(select(models.c.next_version).where(models.c.name == model))
        if number is None:
            number = 1
            connection.execute(insert(models).values(name=model, live=None, next_version=number))
        connection.execute(update(models).where(models.c.name == model).values(next_version=number + 1))
        written = manifest.model_dump_json()
        connection.execute(
            insert(versions).values(
                model=model,
                version=number,
                created=int(time.time()),
                parent=parent if parent is None or ":" in parent else f"{model}:{parent}",
                job=job,
                manifest=written,
                manifest_digest=digest(written.encode()),
            )
        )
        rows = [{"model": model, "version": number, "name": name, "digest": sha} for name, sha in manifest.files.items()]
        connection.execute(insert(version_files), rows)
        return str(number)

    def _content(self, manifest: Manifest, model: str, version: str, name: str) -> bytes:
        if name not in manifest.files:
            raise NotFoundError(f"{model}:{version} has no file {name!r}; it has {', '.join(sorted(manifest.files))}")
        try:
            return self.blobs.get(manifest.files[name])
        except (NotFoundError, CorruptError) as error:
            raise CorruptError(f"{name} of {model}:{version} cannot be read: {error}") from None


def check_name(model: str) -> None:
    """Raise InvalidRequestError unless ``model`` is a name that a model may have."""
    if not NAME.fullmatch(model):
        raise InvalidRequestError(
            f"{model[:80]!r} is no model name: up to 64 letters, digits, '.', '_' and '-', the first a letter or digit"
        )


def _version_of_job(connection: Connection, model: str, job: str | None) -> str | None:
    if job is None:
        return None
    return live.text(connection.scalar(select(versions.c.version).where(versions.c.job == job, versions.c.model == model)))


def _manifest(row: Row[Any]) -> Manifest:
    name = f"{row.model}:{row.version}"
    if digest(row.manifest.encode()) != row.manifest_digest:
        raise CorruptError(f"the manifest of {name} has changed since it was published")
    try:
        return parse(row.manifest)
    except BundleError as error:
        raise CorruptError(f"the manifest of {name} cannot be read: {error}") from None


def _line(row: Row[Any], *, manifests: bool) -> dict[str, Any]:
    known = {"version": str(row.version), "created": row.created, "parent": row.parent, "job": row.job}
    try:
        manifest = _manifest(row)
    except CorruptError as error:
        return {**known, "corrupt": str(error)}
    return {
        **known,
        "model_digest": manifest.model_digest,
        "gradient_mode": manifest.gradient_mode,
        "lipschitz_bound": manifest.lipschitz.bound,
        "metrics": manifest.training.metrics if manifest.training else {},
        **({"manifest": manifest.model_dump(mode="json")} if manifests else {}),
    }
