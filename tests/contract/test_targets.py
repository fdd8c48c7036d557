"""Targets that name tests run them: pytest leaves out a folder that lies within another one that is named too."""

from itertools import permutations
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINES = [line for line in (ROOT / "Makefile").read_text().splitlines() if "-m pytest" in line]


def named(line: str) -> list[Path]:
    words = line.partition("-m pytest")[2].split()
    return [ROOT / word for word in words if word.startswith("tests/") and words[words.index(word) - 1] != "--ignore"]


@pytest.mark.parametrize("line", LINES)
def test_no_target_names_a_folder_within_another(line: str) -> None:
    assert all(path.exists() for path in named(line))
    assert [(inner, outer) for inner, outer in permutations(named(line), 2) if inner.is_relative_to(outer)] == []


def test_the_target_of_faults_names_every_test_of_faults() -> None:
    (faults,) = (named(line) for line in LINES if "tests/faults" in line)
    there = set((ROOT / "tests" / "faults").rglob("test_*.py"))
    assert {file for path in faults for file in ([path] if path.is_file() else path.glob("test_*.py"))} == there
