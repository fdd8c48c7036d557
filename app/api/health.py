"""Whether the process lives, and whether all it should serve answers."""

from app.errors import UnavailableError
from app.inference.catalog import Catalog


def live() -> dict[str, bool]:
    """Return the answer of a process that can answer at all."""
    return {"live": True}


def ready(catalog: Catalog) -> dict[str, bool | dict[str, str]]:
    """Return the answer when every model that has a live version serves it, or the one before, which ``problems`` then tells of.

    The protocol's text names the key ``live`` and KServe's client reads ``ready``, so both are there.

    Raises:
        UnavailableError: some do not.
    """
    if not catalog.ready:
        raise UnavailableError("Not every model is ready: see POST /v2/repository/index.")
    problems = catalog.problems()
    return {"live": True, "ready": True} | ({"problems": problems} if problems else {})
