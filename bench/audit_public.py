"""Audits public ONNX files and prints a table: file, size, layers, seconds, bound or the first operator that stands in the way.

Nothing is fetched. The files lie in packages that anybody may download and unpack:

    pip download --no-deps --dest wheels rapidocr-onnxruntime==1.4.4 silero-vad==6.2.3 magika==1.0.3 ddddocr==1.6.1
    python bench/audit_public.py wheels/*.whl                # and the light models of the onnx package, which is installed
"""

import argparse
import multiprocessing
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import onnx

from export.audit import audit

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def files(paths: list[Path]) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of every ONNX file in wheels, and of those given."""
    for path in paths:
        if path.suffix != ".whl":
            yield path.name, path.read_bytes()
            continue
        with zipfile.ZipFile(path) as wheel:
            for name in wheel.namelist():
                if name.endswith(".onnx"):
                    yield f"{path.name.split('-')[0]}: {Path(name).name}", wheel.read(name)


def row(name: str, content: bytes) -> str:
    """Return one row of the table."""
    start = time.perf_counter()
    report = audit(content)
    seconds = time.perf_counter() - start
    bounded = [stated for stated in report.lipschitz.values() if stated.bound is not None]
    if bounded:
        found = ", ".join(f"{stated.bound:.3g}" for stated in bounded)
    else:
        found = next(iter(report.lipschitz.values())).reason or ""
        causes = found.split("; ")
        found = causes[0] + (f" (and {len(causes) - 1} more)" if len(causes) > 1 else "")
    return f"| {name} | {len(content) / 2**20:.1f} | {len(report.layers)} | {seconds:.1f} | {found} |"


def told(name: str, content: bytes) -> None:
    """Print one row."""
    print(row(name, content), flush=True)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("files", nargs="*", type=Path, help="wheels or ONNX files")
    options.add_argument("--limit", type=float, default=300, help="seconds for one file")
    chosen = options.parse_args()
    print("| file | MB | layers | s | bound, or what stands in its way |\n|---|---|---|---|---|", flush=True)
    for name, content in files(chosen.files or sorted(LIGHT.glob("*.onnx"))):
        child = multiprocessing.get_context("spawn").Process(target=told, args=(name, content))
        child.start()
        child.join(chosen.limit)
        if child.is_alive():
            child.kill()
            print(f"| {name} | {len(content) / 2**20:.1f} | - | > {chosen.limit:.0f} | stopped |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
