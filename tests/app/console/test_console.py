import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.console import STATIC, assets, router

OURS = sorted(path for path in STATIC.iterdir() if path.is_file())
SCRIPTS = [path for path in OURS if path.suffix == ".js"]
IMPORT = re.compile(r"""^(?:import|export)\s[^;]*?from\s+"([^"]+)"|^import\s+"([^"]+)"|\bimport\(\s*"([^"]+)""", re.MULTILINE)


class Page(HTMLParser):
    """What a page refers to, and what a policy without `unsafe-inline` would refuse."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.inline: list[str] = []
        self.ids: set[str] = set()
        self._inside: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        for name, value in attrs:
            if name.startswith("on") or name == "style" or (value or "").strip().lower().startswith("javascript:"):
                self.inline.append(f"<{tag} {name}={value}>")
            if name in {"src", "href", "action", "srcset", "data", "poster"} and value is not None:
                self.references.append(value)
            if name == "id" and value is not None:
                self.ids.add(value)

    def handle_data(self, data: str) -> None:
        if self._inside in {"script", "style"} and data.strip():
            self.inline.append(f"<{self._inside}>{data.strip()[:40]}")

    def handle_endtag(self, tag: str) -> None:
        self._inside = None


@pytest.fixture
def client() -> Iterator[TestClient]:
    app = FastAPI()
    app.include_router(router())
    with TestClient(app, base_url="http://127.0.0.1") as found:
        yield found


def text(name: str) -> str:
    return (STATIC / name).read_text()


def imports(path: Path) -> set[str]:
    return {next(filter(None, found)) for found in IMPORT.findall(path.read_text())}


def test_the_page_and_every_file_that_it_needs_answer_with_their_type(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    wanted = {one for one in Page(page.text).references if one.startswith("console/")}
    assert len(wanted) >= 3
    types = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    reached: set[str] = set()
    while wanted - reached:
        name = (wanted - reached).pop()
        reached.add(name)
        answer = client.get(f"/{name}")
        assert answer.status_code == 200, name
        assert answer.headers["content-type"].split(";")[0] == types[Path(name).suffix], name
        if name.endswith(".js"):
            wanted |= {f"console/static/{one.removeprefix('./')}" for one in imports(STATIC / Path(name).name)}
    assert {f"console/static/{path.name}" for path in SCRIPTS} <= reached, "a script that nothing loads"


def test_nothing_in_the_page_is_inline() -> None:
    assert Page(text("index.html")).inline == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_do_nothing_that_a_strict_policy_forbids(path: Path) -> None:
    code = path.read_text()
    for refused in (
        r"\beval\(",
        r"new Function\b",
        r"\.innerHTML\b",
        r"insertAdjacentHTML",
        r"document\.write",
        r"""["']style["']""",
        r"\bstyle:",
    ):
        assert not re.search(refused, code), refused


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_nothing_is_loaded_from_another_place(path: Path) -> None:
    said = re.sub(r"^//.*$", "", path.read_text(), flags=re.MULTILINE).replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"(?:https?:)?//[a-z0-9-]+\.[a-z]", said, re.IGNORECASE)
    assert "@import" not in said
    assert not re.search(r"\burl\(\s*[\"']?(?!\))[a-z]+:", said)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_modules_import_what_their_neighbours_export(path: Path) -> None:
    for names, source in re.findall(r"""^import \{ ([^}]+) \} from "\./([^"]+)";$""", path.read_text(), re.MULTILINE):
        exported = set(re.findall(r"^export (?:const|function\*?|async function\*?|class) (\w+)", text(source), re.MULTILINE))
        assert set(names.split(", ")) <= exported


def test_every_element_that_the_scripts_ask_for_is_in_the_page() -> None:
    code = "\n".join(path.read_text() for path in SCRIPTS)
    asked = set(re.findall(r'\b(?:byId|fill)\("([^"]+)"', code))
    assert asked
    assert asked <= Page(text("index.html")).ids


def test_addresses_are_relative_so_that_a_proxy_may_add_a_prefix() -> None:
    assert not [one for one in Page(text("index.html")).references if one.startswith("/")]
    assert not [path.name for path in SCRIPTS if re.search(r"""["'`]/(?:admin|v1|v2|console)\b""", path.read_text())]


def test_a_file_that_is_known_already_is_not_sent_again(client: TestClient) -> None:
    first = client.get("/console/static/main.js")
    assert first.headers["cache-control"] == "no-cache"
    for known in (first.headers["etag"], f'W/{first.headers["etag"]}, "other"', "*"):
        again = client.get("/console/static/main.js", headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert client.get("/console/static/main.js", headers={"If-None-Match": '"other"'}).status_code == 200


def test_entity_tags_differ_between_contents() -> None:
    found = assets()
    assert len({asset.etag for asset in found.values()}) == len({asset.content for asset in found.values()})


def test_only_files_of_the_page_are_served() -> None:
    assert "index.html" in assets()
    assert not [name for name in assets() if name.endswith(".py") or ".." in name]
