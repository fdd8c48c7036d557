"""Every Python block of the docs and the README runs; those of one page run in order, in one namespace.

One marked ``python no-run`` needs what is not here; one that names the demo service's address is run against a real one, by
``tests/e2e/test_stranger.py``.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python *\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)")
SERVICE = "127.0.0.1:8000"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def run(page):
    text = page.read_text()
    namespace = {"__name__": "example"}
    for block in BLOCK.finditer(text):
        if SERVICE not in block[1]:
            line = text.count("\n", 0, block.start(1))
            exec(compile("\n" * line + block[1], str(page), "exec"), namespace)


def anchors(page):
    """The anchors of a page's headings, as a forge makes them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [page for page in PAGES if BLOCK.search(page.read_text())], ids=lambda page: str(page.relative_to(ROOT)))
def test_the_examples_of_a_page_run(page):
    run(page)


@pytest.mark.parametrize(
    "name",
    [
        "activations-and-losses", "coming-from", "export", "fine-tuning", "gradients", "orthogonal", "private-training", "sigma",
        "spectral-layers", "training",
    ],
)  # fmt: skip
def test_every_page_on_a_concept_has_examples_and_a_place_in_the_index(name):
    page = ROOT / "docs" / f"{name}.md"
    assert BLOCK.search(page.read_text())
    assert f"({name}.md)" in (ROOT / "docs" / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_within_the_project_leads_somewhere(page):
    for path, anchor in LINK.findall(page.read_text()):
        target = (page.parent / path) if path else page
        assert target.exists(), f"{page.name} links to {path}, which is not there"
        assert not anchor or anchor in anchors(target), f"{page.name} links to #{anchor}, which {target.name} has not"


def test_an_example_that_is_wrong_fails_at_its_own_line(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n```python\nx = 1\n```\n\n```python no-run\nraise\n```\n\n```python\nassert x == 2\n```\n")
    with pytest.raises(AssertionError) as caught:
        run(page)
    assert caught.traceback[-1].lineno + 1 == 12
