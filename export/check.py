"""Check a bundle that came from elsewhere: `python -m export.check FOLDER` proves again from its bytes what its manifest promises."""

import sys
from pathlib import Path

from export.audit.report import AuditError
from export.bundle import BundleError, read
from export.verify import VerificationError, check


def main(folder: Path) -> int:
    """Return 0 where the bundle is true; else 1, with the reason as one sentence on stderr."""
    try:
        check(*read(folder))
    except (AuditError, BundleError, VerificationError) as error:
        sys.stderr.write(f"specnorm: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m export.check FOLDER")
    sys.exit(main(Path(sys.argv[1])))
