"""Where versions come from, and what is told of each."""

from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol

from app.registry.artifact import Artifact


class Source(Protocol):
    """Where versions come from. Every method blocks, and is called on a thread."""

    def models(self) -> list[str]:
        """Return the names of all models."""
        ...

    def versions(self, model: str) -> list[str]:
        """Return the versions of ``model``; NotFoundError where it is unknown."""
        ...

    def live(self, model: str) -> str | None:
        """Return the promoted version of ``model``."""
        ...

    def previous(self, model: str) -> str:
        """Return the version that was live before that; ConflictError where there is none."""
        ...

    def aliases(self) -> Mapping[str, Mapping[str, str]]:
        """Return the version of every alias by model."""
        ...

    def artifact(self, model: str, version: str) -> Artifact:
        """Return a version; NotFoundError, or CorruptError where its bytes are not those recorded."""
        ...


class State(NamedTuple):
    """What the repository index says of one version."""

    model: str
    version: str
    state: Literal["READY", "UNAVAILABLE", "LOADING"]
    reason: str = ""
