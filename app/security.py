"""Who may do what: keys, scopes, and the checks that stand in for keys on a loopback address.

Every request passes :func:`authorise`, the raw ``/v2`` path as the others. It judges the path that the routers
route on and lets nothing by default: a path that no row of :data:`SCOPES` names, or that is not in its normal form,
does not exist.
"""

import hashlib
import hmac
import ipaddress
import json
import logging
import os
import re
import secrets
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.errors import ForbiddenError, InvalidRequestError, NotFoundError, UnauthenticatedError
from app.settings import Settings

Scope = Literal["infer", "train", "admin"]
ALL: frozenset[Scope] = frozenset(get_args(Scope))

# Prefix of whole path segments → scope, the longest match first; None = open to all.
SCOPES: dict[str, Scope | None] = {
    "/v2/health": None,
    "/v2/repository": "admin",
    "/v2": "infer",
    "/v1/models": "infer",
    "/v1/files": "train",
    "/v1/fine_tuning": "train",
    "/admin/jobs": "train",
    "/admin": "admin",
    "/metrics": "admin",
    "/docs": None,
    "/openapi.json": None,
    "/session": None,
    "/console": None,
}

COOKIE = "specnorm_key"

# Octets that are only ever escaped to slip past a check: unreserved characters, slashes, controls.
_NEEDLESS = re.compile(r"%(?:[01]|2[def]|3[0-9]|4[1-9a-f]|5[0-9acf]|6[1-9a-f]|7[0-9aef])", re.IGNORECASE)
_ABNORMAL = re.compile(r"//|/\.{1,2}(?:/|$)|\\|[\x00-\x1f\x7f]")

log = logging.getLogger(__name__)


class Principal(NamedTuple):
    """Who asks: the id of a key, or ``local`` where none is needed."""

    id: str
    scopes: frozenset[Scope]


class Key(BaseModel):
    """One key at rest. The secret has 256 random bits, so a plain sha256 of it cannot be searched."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    scopes: frozenset[Scope] = Field(min_length=1)
    created: datetime
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class KeyFile(BaseModel):
    """The file of keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: tuple[Key, ...] = ()


def read_keys(path: Path) -> KeyFile:
    """Return the keys in ``path``.

    Raises:
        InvalidRequestError: it cannot be read, or is no file of keys.
    """
    try:
        return KeyFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InvalidRequestError(f"The file of keys {path} cannot be read: {error.strerror}.") from None
    except ValidationError:
        raise InvalidRequestError(f"{path} is no file of keys: make one with `specnorm keys create`.") from None


def create_key(path: Path, scopes: Iterable[Scope]) -> tuple[Key, str]:
    """Add a new key to ``path`` and return it with its secret, which is kept nowhere.

    Raises:
        InvalidRequestError: ``path`` exists and is no file of keys.
    """
    known = read_keys(path).keys if path.exists() else ()
    secret = f"sn-{secrets.token_urlsafe(32)}"
    key = Key(id=f"key-{secrets.token_hex(4)}", scopes=frozenset(scopes), created=datetime.now(UTC), sha256=_hash(secret))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".keys-", delete=False) as draft:  # mode 0600
        content = KeyFile(keys=(*known, key)).model_dump(mode="json")
        json.dump(content, draft, indent=2)
        draft.flush()
        os.fsync(draft.fileno())
    Path(draft.name).replace(path)
    return key, secret


class Keys:
    """The keys of a file, read again whenever it changes; while it is unreadable no key is good."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys = read_keys(path).keys
        self._stamp = self._stat()

    def find(self, secret: str) -> Principal | None:
        """Return whose secret it is, or None; the time it takes does not depend on the secret."""
        self._refresh()
        offered = _hash(secret)
        found: Key | None = None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, offered):
                found = key
        return Principal(found.id, found.scopes) if found else None

    def current(self) -> tuple[Key, ...]:
        """Return the keys as the file has them now; the same object while it is unchanged."""
        self._refresh()
        return self._keys

    def _refresh(self) -> None:
        stamp = self._stat()
        if stamp == self._stamp:
            return
        try:
            self._keys = read_keys(self._path).keys
        except InvalidRequestError as error:
            log.error("no key is accepted until this is mended: %s", error)
            self._keys = ()
        self._stamp = stamp

    def _stat(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


@dataclass(frozen=True)
class Access:
    """What requests are judged by."""

    keys: Keys | None
    hosts: frozenset[str]
    metrics_public: bool


def access(settings: Settings) -> Access:
    """Return how requests are judged under ``settings``.

    Raises:
        InvalidRequestError: the file of keys is unreadable, or the address is not loopback and there are no keys.
    """
    check_bind(settings)
    keys = Keys(settings.api_keys_file) if settings.api_keys_file else None
    own = f"[{settings.host}]" if ":" in settings.host else settings.host
    hosts = {*settings.allowed_hosts, *([own] if is_loopback(settings.host) else [])}
    return Access(keys, frozenset(host.lower() for host in hosts), settings.metrics_public)


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_bind(settings: Settings) -> None:
    """Refuse to serve without keys where others can reach the address.

    Raises:
        InvalidRequestError: the address is not loopback and nothing guards it.
    """
    if settings.api_keys_file or is_loopback(settings.host) or settings.trust_published_loopback:
        return
    raise InvalidRequestError(
        f"Without keys the service binds a loopback address only, and {settings.host} is none: make keys with"
        " `specnorm keys create --scope infer` and name their file in SPECNORM_API_KEYS_FILE."
    )


def scope_of(path: str, raw_path: str | None = None) -> Scope | None:
    """Return the scope that ``path`` needs, None where it is open.

    Raises:
        NotFoundError: nothing is there, or the path is not in its normal form.
    """
    if path == "/":
        return None
    if path.startswith("/") and not _ABNORMAL.search(path) and not _NEEDLESS.search(raw_path or ""):
        first, second = (f"{path}/".split("/", 3))[1:3]
        for prefix in (f"/{first}/{second}", f"/{first}"):
            if prefix in SCOPES:
                return SCOPES[prefix]
    raise NotFoundError("There is no such route.")


def authorise(
    access: Access,
    method: str,
    path: str,
    headers: Iterable[tuple[bytes, bytes]],
    *,
    raw_path: str | None = None,
) -> Principal:
    """Return who asks, if they may.

    Args:
        access: what requests are judged by.
        method: of the request.
        path: decoded, as the routers see it.
        headers: lower-case names and values, as ASGI has them.
        raw_path: as it was sent, without the query.

    Raises:
        NotFoundError: there is no such route.
        InvalidRequestError: the ``Host`` is not one of ours.
        UnauthenticatedError: a key is needed.
        ForbiddenError: the key lacks the scope, or a page of another site asks.
    """
    scope = scope_of(path, raw_path)
    if path == "/metrics" and access.metrics_public:
        scope = None
    said = _judged(headers)
    if access.keys is None:
        _check_host(said.get(b"host"), access.hosts)
        _check_origin(said, navigation=scope is None and method in {"GET", "HEAD"})
        return Principal("local", ALL)
    if scope is None:
        return Principal("anyone", frozenset())
    principal = _of_key(access.keys, said)
    if scope not in principal.scopes:
        raise ForbiddenError(f"This route needs a key with the scope {scope!r}; this one has {', '.join(sorted(principal.scopes))}.")
    return principal


_JUDGED = frozenset({b"host", b"origin", b"authorization", b"cookie", b"sec-fetch-site", b"sec-fetch-mode"})


def _judged(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, str]:
    """Pick the headers that are judged; one that comes twice could be read differently elsewhere."""
    said: dict[bytes, str] = {}
    for name, value in headers:
        if name in _JUDGED:
            if name in said and name != b"cookie":
                raise InvalidRequestError(f"The header {name.decode()} must not be repeated.")
            said[name] = value.decode("latin-1")
    return said


def _of_key(keys: Keys, said: dict[bytes, str]) -> Principal:
    authorization = said.get(b"authorization")
    if authorization is not None:
        scheme, _, secret = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise UnauthenticatedError
        secret = secret.strip()
    else:
        secret = _cookie(said.get(b"cookie", ""))
        if secret:
            _check_origin(said, navigation=False)  # a browser sends a cookie by itself, so ask who made it
    principal = keys.find(secret) if secret else None
    if principal is None:
        raise UnauthenticatedError("That key is not known." if secret else None)
    return principal


def _cookie(text: str) -> str:
    try:
        morsel = SimpleCookie(text).get(COOKIE)
    except CookieError:
        return ""
    return morsel.value if morsel else ""


def _check_host(host: str | None, allowed: frozenset[str]) -> None:
    """Keep out names that somebody else's DNS points here."""
    name = re.sub(r":\d+$", "", host or "").lower()
    if name not in allowed:
        raise InvalidRequestError("This Host is not served: add it to SPECNORM_ALLOWED_HOSTS, or use keys.")


def _check_origin(said: dict[bytes, str], *, navigation: bool) -> None:
    """Keep out pages of other sites; following a link to an open page is no attack."""
    origin, site = said.get(b"origin"), said.get(b"sec-fetch-site")
    if navigation and said.get(b"sec-fetch-mode") == "navigate" and origin is None:
        return
    own = said.get(b"host", "").lower()
    foreign = origin is not None and origin.lower().partition("://")[2] != own
    if foreign or site not in {None, "same-origin", "none"}:
        raise ForbiddenError("Pages of another origin may not call this service.")


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
