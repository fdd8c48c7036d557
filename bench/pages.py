"""Measure serving on this machine, and write what was found into docs/speed.md and docs/processes.md: about five minutes.

Each bench prints a table; it takes the place of what stands between two marks in its page. Run it where nothing else runs.

.venv/bin/python bench/pages.py [--seconds 2] [--pairs 5] [--only floor infer processes swap]
"""

import argparse
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
PAGES: Final = {"floor": "speed.md", "infer": "speed.md", "swap": "speed.md", "processes": "processes.md"}
OPTIONS: Final = {"floor": True, "infer": True, "processes": True, "swap": False}  # whether it takes --seconds and --pairs


def replaced(page: str, name: str, text: str) -> str:
    """Return ``page`` with ``text`` between the marks of the bench ``name``."""
    marks = rf"(<!-- bench {name} -->\n).*?(<!-- end -->)"
    changed, count = re.subn(marks, lambda found: f"{found[1]}{text.strip()}\n{found[2]}", page, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"the page has {count} places for the bench {name}, not one")
    return changed


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=sorted(PAGES), default=list(PAGES))
    options = parser.parse_args()
    given = ["--seconds", f"{options.seconds:g}", "--pairs", str(options.pairs)]
    for name in options.only:
        command = [f"bench/{name}.py", "--markdown", *(given if OPTIONS[name] else [])]
        load = os.getloadavg()[0]
        table = subprocess.run([sys.executable, *command], cwd=HERE.parent, check=True, stdout=subprocess.PIPE, text=True).stdout
        said = f"`{' '.join(command)}`, {len(os.sched_getaffinity(0))} CPUs ({processor()}), load average {load:.1f} at its start:"
        print(f"{said}\n\n{table}", flush=True)
        path = HERE.parent / "docs" / PAGES[name]
        path.write_text(replaced(path.read_text(), name, f"{said}\n\n{table[table.index('|') :]}"))


if __name__ == "__main__":
    main()
