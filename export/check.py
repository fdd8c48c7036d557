"""Check a bundle that came from elsewhere: `python -m export.check FOLDER` proves again from its bytes what its manifest promises."""

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path

from export.bundle import CHECKPOINT, BundleError, Manifest, read
from export.claims import VerificationError, check


def problem(folder: Path) -> str | None:
    """Return what is not true of the bundle in ``folder``; None where all of it is. Without torch its checkpoint is not folded again."""
    try:
        manifest, files = read(folder)
        check(manifest, files)
        if CHECKPOINT in files and importlib.util.find_spec("torch"):
            return _of_checkpoint(manifest, files)
    except (BundleError, VerificationError) as error:
        return str(error)
    return None


def _of_checkpoint(manifest: Manifest, files: Mapping[str, bytes]) -> str | None:
    from export.checkpoint import CheckpointError  # noqa: PLC0415  # needs torch
    from export.fold import FoldError  # noqa: PLC0415
    from export.to_onnx import GraphError  # noqa: PLC0415
    from export.verify import check_checkpoint  # noqa: PLC0415

    try:
        check_checkpoint(manifest, files)
    except (CheckpointError, FoldError, GraphError, VerificationError) as error:
        return str(error)
    return None


def main(folder: Path) -> int:
    """Return 0 where the bundle is true; else 1, with the reason as one sentence on stderr."""
    found = problem(folder)
    if found is not None:
        sys.stderr.write(f"specnorm: {found}\n")
    return int(found is not None)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m export.check FOLDER")
    sys.exit(main(Path(sys.argv[1])))
