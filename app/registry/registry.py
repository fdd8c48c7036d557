"""Models and their versions: published once, never changed, and at most one of each model live."""

import re
import time
from collections.abc import Callable, Mapping

from sqlalchemy import Connection, delete, insert, select, update

from app.db import jobs, models, reading, version_files, versions
from app.errors import ConflictError, InvalidRequestError
from app.registry import aliases, live
from app.registry.contents import Contents
from app.registry.once import Answer, answered, recall
from app.registry.shelf import hold
from export.bundle import Manifest, digest

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
OPEN_STATES = ("validating_files", "queued", "running")

Within = Callable[[Connection, str], None]


class Registry(Contents):
    """The models of a workspace, to be read and changed; each change is one transaction."""

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
        stored = [self.blobs.put(content) for content in files.values()]
        with self.database.begin() as connection:
            hold(connection, *stored)
            version = _version_of_job(connection, model, job) or self._insert(connection, model, manifest, job=job, parent=parent)
            if within is not None:
                within(connection, version)
        return version

    def promote(self, model: str, version: str, *, why: str, who: str, key: str | None = None) -> str | None:
        """Make ``version`` the live one and return the one that was; promoting the live version again changes nothing.

        Under an idempotency ``key`` it is done once: after that the first answer is given again, whatever is live by then.

        Raises:
            NotFoundError: there is no such model or version.
            ConflictError: the key was used for another request.
        """

        def move() -> Answer:
            return {"previous": live.promote(connection, model, version, why=why, who=who)}

        with self.database.begin() as connection:
            previous: str | None = answered(connection, "promote", key, [model, version], move)["previous"]
            return previous

    def rolled_back(self, model: str, key: str | None) -> tuple[str, str] | None:
        """Return what :meth:`rollback` answered under this idempotency key, or None."""
        with reading(self.database) as connection:
            known = recall(connection, "rollback", key, [model])
            return None if known is None else (known["live"], known["until_now"])

    def rollback(self, model: str, *, who: str, expected: str | None = None, key: str | None = None) -> tuple[str, str]:
        """Go back to the version that was live before, and return it with the one that was live until now.

        Going back twice goes back two promotions; versions deleted since are passed over.

        Args:
            model: name of the model.
            who: who asks, for the history.
            expected: the version to arrive at, where the caller has looked (:meth:`previous`) and prepared it.
            key: idempotency key: under one it goes back once, however often it is asked.

        Raises:
            NotFoundError: there is no such model.
            ConflictError: no other version was live before, or it is no longer the expected one.
        """

        def move() -> Answer:
            until_now = str(live.known(connection, model).live)
            target = live.previous(connection, model)
            if expected not in {None, target}:
                raise ConflictError(f"model {model!r} was promoted meanwhile: try again")
            live.move(connection, model, target, what="rollback", why="rollback", who=who)
            return {"live": target, "until_now": until_now}

        with self.database.begin() as connection:
            answer = answered(connection, "rollback", key, [model], move)
        return answer["live"], answer["until_now"]

    def set_alias(self, model: str, alias: str, version: str, *, who: str) -> str | None:
        """Point ``model@alias`` at ``version``, and return the version that it pointed at before.

        Raises:
            NotFoundError: there is no such model or version.
            InvalidRequestError: ``alias`` is no name that an alias may have.
        """
        with self.database.begin() as connection:
            return aliases.point(connection, model, alias, version, who=who)

    def remove_alias(self, model: str, alias: str) -> str:
        """Forget ``model@alias``, and return the version that it pointed at.

        Raises:
            NotFoundError: there is no such model or alias.
        """
        with self.database.begin() as connection:
            return aliases.remove(connection, model, alias)

    def delete(self, model: str, version: str, *, unless: Callable[[Connection, str, str], None] | None = None) -> None:
        """Remove a version for good; its number is not used again.

        Args:
            model: name of the model.
            version: one of its versions.
            unless: looks in the same transaction, given model and version; what it raises keeps the version.

        Raises:
            NotFoundError: there is no such model or version.
            ConflictError: it is live or has an alias, another version was trained from it, or a job is about to be.
        """
        name = f"{model}:{version}"
        with self.database.begin() as connection:
            row = live.find(connection, model, version)
            if live.known(connection, model).live == row.version:
                raise ConflictError(f"{name} is live: promote another version first")
            named = aliases.names_of(connection, model, row.version)
            if named:
                raise ConflictError(f"{name} is {model}@{named[0]}: move that alias to another version first, or remove it")
            child = connection.execute(select(versions.c.model, versions.c.version).where(versions.c.parent == name)).first()
            if child is not None:
                raise ConflictError(f"{name} is the parent of {child.model}:{child.version}: it is kept as its origin")
            job = connection.scalar(select(jobs.c.id).where(jobs.c.parent == name, jobs.c.state.in_(OPEN_STATES)))
            if job is not None:
                raise ConflictError(f"{name} is what job {job} trains from: cancel the job or wait for it")
            if unless is not None:
                unless(connection, model, str(row.version))
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
