"""The pages that the code tells tell what it tells now."""

import importlib.util
from pathlib import Path
from types import ModuleType

DOCS = Path(__file__).parents[2] / "docs"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_page_is_what_make_docs_writes() -> None:
    assert (DOCS / "reference.md").read_text() == script("reference").page(), "run `make docs`"


def test_the_page_on_fine_tuning_shows_the_states_and_parameters_that_there_are() -> None:
    jobs = script("jobs")
    page = jobs.PAGE.read_text()
    assert page == jobs.written(page), "run `make docs`"


def test_the_diagram_of_states_shows_the_whole_table() -> None:
    from app.jobs.machine import TABLE

    diagram = script("jobs").states()
    assert diagram.count(" --> ") == len(TABLE) + 1 + 3  # and the beginning, and the three ends
    assert all(f"{start} --> {end}: {event}" in diagram for (start, event), end in TABLE.items())
