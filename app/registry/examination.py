"""A workspace looked through: whether rows have their bytes and pointers their targets, and what a crash left behind."""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from sqlalchemy import func, select
from sqlalchemy.exc import DatabaseError

from app.db import admissions, aliases, blobs, files, history, job_checkpoints, jobs, models, reading, version_files
from app.errors import CorruptError, NotFoundError
from app.registry.registry import OPEN_STATES, Registry

BEAT_SECONDS = 2.5
"""A worker that lives shows so at least once in this time, unless the machine is very busy."""

RESTORE = "restore a backup into a new workspace (`specnorm restore`), or put the same bytes again: that heals them"
SWEEP = "nothing: the service sweeps it away, at the latest after a day"


class Finding(NamedTuple):
    """Something that is not as it should be, and what to do; one that is no ``problem`` heals by itself."""

    what: str
    do: str
    problem: bool = True


def examine(registry: Registry, *, wait: Callable[[float], None] = time.sleep) -> Iterator[Finding]:
    """Yield what is amiss in a workspace. It may be in use meanwhile; every stored file that a row names is read to its end."""
    damage = list(_database(registry))
    yield from damage
    try:
        for check in (_bytes, _versions, _pointers, _jobs):
            yield from check(registry)
        yield from _leases(registry, wait)
    except CorruptError:
        if not damage:
            raise
    for draft in registry.blobs.store.idle():
        yield Finding(f"the draft {draft} was left behind by a writer that died", SWEEP, problem=False)


def _database(registry: Registry) -> Iterator[Finding]:
    if registry.database.dialect.name != "sqlite":
        return
    with reading(registry.database) as connection:
        try:
            for (line,) in connection.exec_driver_sql("PRAGMA integrity_check"):
                if line != "ok":
                    yield Finding(f"the database file is damaged: {line}", RESTORE)
            for table, row, parent, _ in connection.exec_driver_sql("PRAGMA foreign_key_check"):
                yield Finding(f"row {row} of the table {table} names one of {parent} that is not there", RESTORE)
        except (DatabaseError, CorruptError) as error:
            yield Finding(f"the database file is damaged: {error}", RESTORE)


def _bytes(registry: Registry) -> Iterator[Finding]:
    store = registry.blobs.store
    there, known, named = dict(store.all()), _known(registry), _named(registry)
    for digest, owner in named.items():
        try:
            store.open(digest).close()
        except (NotFoundError, CorruptError) as error:
            if digest in _named(registry):  # still: what was deleted meanwhile is not missed
                yield Finding(f"{owner}: {error}", RESTORE)
            continue
        if known.get(digest, there.get(digest)) != there.get(digest):
            yield Finding(f"{owner}: the database says that {digest} has {known[digest]} bytes, there are {there.get(digest)}", RESTORE)
    stray = there.keys() - known.keys()
    if stray:
        yield Finding(f"{len(stray)} stored files are in no row yet, as {min(stray)}", SWEEP, problem=False)
    gone = known.keys() - there.keys() - named.keys()
    if gone:
        yield Finding(f"{len(gone)} rows are of stored files that nothing names and that are gone, as {min(gone)}", SWEEP, problem=False)


def _known(registry: Registry) -> dict[str, int]:
    with reading(registry.database) as connection:
        return {row.digest: row.bytes for row in connection.execute(select(blobs.c.digest, blobs.c.bytes))}


def _named(registry: Registry) -> dict[str, str]:
    """Return what names each stored file, in words."""
    found: dict[str, str] = {}
    with reading(registry.database) as connection:
        for row in connection.execute(select(version_files)):
            found[row.digest] = f"{row.name} of {row.model}:{row.version}"
        for row in connection.execute(select(files.c.digest, files.c.id)):
            found[row.digest] = f"the upload {row.id}"
        for row in connection.execute(select(job_checkpoints).where(job_checkpoints.c.digest.is_not(None))):
            found[row.digest] = f"the checkpoint {row.id} of {row.job}"
        for row in connection.execute(select(admissions).where(admissions.c.finished_at.is_(None))):
            found |= {digest: f"{name} of {row.id}" for name, digest in row.files.items()}
    return found


def _versions(registry: Registry) -> Iterator[Finding]:
    with reading(registry.database) as connection:
        parts: dict[tuple[str, int], dict[str, str]] = {}
        for row in connection.execute(select(version_files)):
            parts.setdefault((row.model, row.version), {})[row.name] = row.digest
    for model in registry.models():
        for line in registry.describe(model, manifests=True):
            name = f"{model}:{line['version']}"
            if "corrupt" in line:
                yield Finding(line["corrupt"], RESTORE)
            elif parts.get((model, int(line["version"])), {}) != line["manifest"]["files"]:
                yield Finding(f"the rows of {name} name other files than its manifest", RESTORE)


def _pointers(registry: Registry) -> Iterator[Finding]:
    there = registry.everywhere()
    with reading(registry.database) as connection:
        last = select(func.max(history.c.number)).group_by(history.c.model)
        moved = {row.model: row.after for row in connection.execute(select(history).where(history.c.number.in_(last)))}
        for row in connection.execute(select(models)):
            if row.live is not None and str(row.live) not in there.get(row.name, {}):
                yield Finding(f"{row.name}:{row.live} is live and not there", f"`specnorm models promote {row.name} VERSION` another one")
            if row.live != moved.get(row.name):
                after = f"ends with {moved.get(row.name)}, and {row.live} is live"
                yield Finding(f"the history of {row.name} {after}", f"`specnorm models promote {row.name} VERSION` the right one")
            if there.get(row.name) and row.next_version <= max(map(int, there[row.name])):
                yield Finding(f"the next version of {row.name} would be {row.next_version}, which there is", RESTORE)
        for row in connection.execute(select(aliases)):
            if str(row.version) not in there.get(row.model, {}):
                do = f"`specnorm models alias {row.model} {row.alias} VERSION` to one that is there"
                yield Finding(f"{row.model}@{row.alias} is version {row.version}, which is not there", do)


def _jobs(registry: Registry) -> Iterator[Finding]:
    there = registry.everywhere()
    with reading(registry.database) as connection:
        uploads = set(connection.scalars(select(files.c.id)))
        for row in connection.execute(select(jobs).where(jobs.c.state.in_(OPEN_STATES))):
            do = f"`specnorm jobs cancel {row.id}`, then upload and submit it again"
            yield from (
                Finding(f"{row.id} is to train on {file}, which is not there", do)
                for file in (row.training_file, row.validation_file)
                if file is not None and file not in uploads
            )
            model, _, version = row.parent.rpartition(":")
            if version not in there.get(model, {}):
                yield Finding(f"{row.id} is to train {row.parent}, which is not there", do)


def _leases(registry: Registry, wait: Callable[[float], None]) -> Iterator[Finding]:
    query = select(jobs.c.id, jobs.c.attempt, jobs.c.heartbeat).where(jobs.c.owner.is_not(None), jobs.c.state.in_(OPEN_STATES))

    def beats() -> set[tuple[str, int, int]]:
        with reading(registry.database) as connection:
            return {(row.id, row.attempt, row.heartbeat) for row in connection.execute(query)}

    before = beats()
    if before:
        wait(BEAT_SECONDS)
        for job, attempt, _ in sorted(before & beats()):
            do = "nothing where a service or `specnorm worker` runs, which takes it over after one lease; else start one"
            yield Finding(f"the worker of attempt {attempt} at {job} shows no life", do, problem=False)
