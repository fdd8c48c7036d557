import json
import os
from pathlib import Path

import pytest

from app.errors import ForbiddenError, InvalidRequestError, NotFoundError, UnauthenticatedError
from app.security import COOKIE, SCOPES, Access, Keys, access, authorise, check_bind, create_key, read_keys, scope_of
from app.settings import Settings

HOST = (b"host", b"127.0.0.1:8000")
OPEN = Access(None, frozenset({"127.0.0.1", "localhost"}), metrics_public=False)


def keyed(tmp_path: Path, *scopes: str) -> tuple[Access, str]:
    _, secret = create_key(tmp_path / "keys.json", scopes)
    return Access(Keys(tmp_path / "keys.json"), frozenset(), metrics_public=False), secret


def bearer(secret: str) -> list[tuple[bytes, bytes]]:
    return [HOST, (b"authorization", f"Bearer {secret}".encode())]


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("/", None),
        ("/v2/health/live", None),
        ("/docs", None),
        ("/openapi.json", None),
        ("/console/static/console.css", None),
        ("/v2", "infer"),
        ("/v2/", "infer"),
        ("/v2/models/digits/infer", "infer"),
        ("/v2/repository/index", "admin"),
        ("/v1/models", "infer"),
        ("/v1/files/file-1/content", "train"),
        ("/v1/fine_tuning/jobs", "train"),
        ("/admin/models", "admin"),
        ("/metrics", "admin"),
    ],
)
def test_every_route_has_its_scope(path: str, scope: str | None) -> None:
    assert scope_of(path, path) == scope


@pytest.mark.parametrize(
    "path",
    ["//admin/models", "/admin//models", "/./admin", "/admin/../v2", "/admin/.", "/ADMIN/models", "/V2/models", "/v3", "/v1", "/v1/other",
     "/v2x/models", "/adminx", "/healthz", "", "admin/models", "/admin\\models", "/admin/models\x00"],
)  # fmt: skip
def test_a_path_that_is_not_listed_or_not_normal_does_not_exist(path: str) -> None:
    with pytest.raises(NotFoundError):
        scope_of(path)


@pytest.mark.parametrize(
    "raw", ["/admin%2fmodels", "/admin%2Fmodels", "/%61dmin/models", "/admin/%2e%2e/v2", "/v2%5cx", "/v2/a%00", "/v2/%7E"]
)
def test_an_octet_that_is_escaped_without_need_hides_no_route(raw: str) -> None:
    with pytest.raises(NotFoundError):
        scope_of("/v2/models", raw)


def test_an_escaped_space_or_letter_beyond_ascii_is_normal() -> None:
    assert scope_of("/v2/models/a b", "/v2/models/a%20b%C3%A4") == "infer"


@pytest.mark.parametrize("prefix", sorted(prefix for prefix, scope in SCOPES.items() if scope))
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "HEAD", "OPTIONS"])
def test_with_keys_no_guarded_route_answers_without_one(tmp_path: Path, prefix: str, method: str) -> None:
    judged_by, _ = keyed(tmp_path, "admin")
    with pytest.raises(UnauthenticatedError):
        authorise(judged_by, method, prefix, [HOST])


def test_a_key_opens_its_own_scopes_only(tmp_path: Path) -> None:
    judged_by, secret = keyed(tmp_path, "infer")
    assert authorise(judged_by, "POST", "/v2/models/m/infer", bearer(secret)).scopes == {"infer"}
    for path in ("/admin/models", "/v1/files", "/v2/repository/index", "/metrics"):
        with pytest.raises(ForbiddenError):
            authorise(judged_by, "POST", path, bearer(secret))


@pytest.mark.parametrize("value", [b"Bearer wrong", b"Bearer ", b"Basic abc", b"", b"Bearer \xff"])
def test_a_wrong_key_is_refused(tmp_path: Path, value: bytes) -> None:
    judged_by, _ = keyed(tmp_path, "infer")
    with pytest.raises(UnauthenticatedError):
        authorise(judged_by, "GET", "/v2", [HOST, (b"authorization", value)])


def test_an_ambiguous_key_is_refused(tmp_path: Path) -> None:
    judged_by, secret = keyed(tmp_path, "infer")
    with pytest.raises(InvalidRequestError):
        authorise(judged_by, "GET", "/v2", [*bearer(secret), (b"authorization", b"Bearer other")])


def test_the_file_of_keys_holds_no_secret_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    key, secret = create_key(tmp_path / "keys.json", ["infer"])
    text = (tmp_path / "keys.json").read_text()
    assert secret not in text
    assert secret.removeprefix("sn-") not in text
    assert (tmp_path / "keys.json").stat().st_mode & 0o077 == 0
    assert read_keys(tmp_path / "keys.json").keys == (key,)


def test_a_key_that_is_added_or_removed_counts_at_once(tmp_path: Path) -> None:
    judged_by, first = keyed(tmp_path, "infer")
    path = tmp_path / "keys.json"
    _, second = create_key(path, ["infer"])
    assert authorise(judged_by, "GET", "/v2", bearer(second))
    path.write_text(json.dumps({"keys": [key for key in json.loads(path.read_text())["keys"]][1:]}))
    with pytest.raises(UnauthenticatedError):
        authorise(judged_by, "GET", "/v2", bearer(first))
    assert authorise(judged_by, "GET", "/v2", bearer(second))


def test_no_key_is_good_while_the_file_is_unreadable(tmp_path: Path) -> None:
    judged_by, secret = keyed(tmp_path, "infer")
    (tmp_path / "keys.json").write_text("garbage")
    with pytest.raises(UnauthenticatedError):
        authorise(judged_by, "GET", "/v2", bearer(secret))
    os.remove(tmp_path / "keys.json")
    with pytest.raises(UnauthenticatedError):
        authorise(judged_by, "GET", "/v2", bearer(secret))


def test_a_file_that_holds_no_keys_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text('{"keys": [{"id": "x"}]}')
    with pytest.raises(InvalidRequestError, match="no file of keys"):
        access(Settings(api_keys_file=tmp_path / "keys.json"))


def test_a_cookie_stands_for_the_key_unless_another_sites_page_sends_it(tmp_path: Path) -> None:
    judged_by, secret = keyed(tmp_path, "admin")
    cookie = [HOST, (b"cookie", f"other=1; {COOKIE}={secret}".encode())]
    assert authorise(judged_by, "POST", "/admin/models", [*cookie, (b"origin", b"http://127.0.0.1:8000")])
    for name, value in ((b"origin", b"https://evil.example"), (b"sec-fetch-site", b"cross-site"), (b"sec-fetch-site", b"same-site")):
        with pytest.raises(ForbiddenError):
            authorise(judged_by, "POST", "/admin/models", [*cookie, (name, value)])


@pytest.mark.parametrize("host", [b"evil.example", b"127.0.0.1.evil.example", b"evil.example:8000", b""])
def test_without_keys_a_name_that_is_not_ours_is_refused(host: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        authorise(OPEN, "GET", "/v2", [(b"host", host)])
    with pytest.raises(InvalidRequestError):
        authorise(OPEN, "GET", "/v2", [])


@pytest.mark.parametrize("host", [b"localhost", b"LOCALHOST:9000", b"127.0.0.1:1"])
def test_without_keys_our_own_names_are_served(host: bytes) -> None:
    assert authorise(OPEN, "POST", "/admin/models", [(b"host", host)]).id == "local"


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PUT"])
@pytest.mark.parametrize(
    "header",
    [(b"origin", b"https://evil.example"), (b"origin", b"null"), (b"origin", b"http://127.0.0.1:3000"), (b"sec-fetch-site", b"cross-site"),
     (b"sec-fetch-site", b"same-site")],
)  # fmt: skip
def test_without_keys_a_page_of_another_origin_is_refused(method: str, header: tuple[bytes, bytes]) -> None:
    with pytest.raises(ForbiddenError):
        authorise(OPEN, method, "/admin/models/m/versions/1", [HOST, header])


def test_a_client_that_sends_neither_origin_nor_content_type_is_served() -> None:
    assert authorise(OPEN, "POST", "/v2/models/m/infer", [HOST])


def test_our_own_page_may_call() -> None:
    own = [HOST, (b"origin", b"http://127.0.0.1:8000"), (b"sec-fetch-site", b"same-origin")]
    assert authorise(OPEN, "POST", "/admin/models", own)


def test_a_link_from_elsewhere_opens_the_console_but_nothing_else() -> None:
    navigation = [HOST, (b"sec-fetch-site", b"cross-site"), (b"sec-fetch-mode", b"navigate")]
    assert authorise(OPEN, "GET", "/", navigation)
    for method, path in (("GET", "/admin/models"), ("POST", "/"), ("GET", "/metrics")):
        with pytest.raises(ForbiddenError):
            authorise(OPEN, method, path, navigation)


def test_the_metrics_are_open_where_the_setting_says_so(tmp_path: Path) -> None:
    judged_by, _ = keyed(tmp_path, "infer")
    assert authorise(Access(judged_by.keys, frozenset(), metrics_public=True), "GET", "/metrics", [HOST])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.2"])
def test_without_keys_a_loopback_address_may_be_bound(host: str) -> None:
    check_bind(Settings(host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", ""])
def test_without_keys_no_other_address_is_bound(host: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="loopback"):
        check_bind(Settings(host=host))
    check_bind(Settings(host=host, trust_published_loopback=True))
    check_bind(Settings(host=host, api_keys_file=tmp_path / "keys.json"))
