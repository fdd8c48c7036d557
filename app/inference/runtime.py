"""Which ONNX Runtime is installed; found without loading it."""

import importlib.metadata
from typing import Final

from app.errors import UnavailableError

PACKAGES: Final = ("onnxruntime", "onnxruntime-gpu")


def installed() -> str:
    """Return name and version of the one that is there.

    Raises:
        UnavailableError: there is none, or there are both: the one installed last has overwritten files of the other, without an error.
    """
    have = {package: version for package in PACKAGES if (version := _version(package))}
    if len(have) != 1:
        what = "both onnxruntime and onnxruntime-gpu" if have else "no ONNX Runtime"
        raise UnavailableError(f"There is {what} in this environment: install exactly one of the extras cpu and gpu.")
    ((package, version),) = have.items()
    return f"{package} {version}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
