"""``python -m export.admission MODEL.onnx --out FOLDER``: judge an ONNX file from elsewhere, and write it as a bundle."""

import argparse
import sys
from pathlib import Path

from export.admission.admit import STANDARD, AdmissionError, admit
from export.bundle import MODEL, BundleError, write


def main(arguments: list[str] | None = None) -> int:
    """Return 0 where the model is admitted; else 1, with the reason as one sentence on stderr."""
    command = argparse.ArgumentParser(prog="python -m export.admission", description=__doc__)
    command.add_argument("model", type=Path, help="an ONNX file")
    command.add_argument("--out", type=Path, required=True, help="new folder for the bundle")
    command.add_argument("--seconds", type=float, default=STANDARD.seconds, help="longest time that the trial may take")
    command.add_argument("--memory", type=int, default=STANDARD.memory, help="bytes of memory that the trial may take")
    options = command.parse_args(arguments)
    try:
        with options.model.open("rb") as stream:
            content = stream.read(STANDARD.size + 1)
        write(options.out, admit(content, STANDARD._replace(memory=options.memory, seconds=options.seconds)), {MODEL: content})
    except (AdmissionError, BundleError, OSError) as error:
        sys.stderr.write(f"specnorm: {options.model.name} is not admitted: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
