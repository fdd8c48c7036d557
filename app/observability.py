"""Logs with request ids, and the Prometheus page.

Metrics are pulled: rooms keep their own numbers, and a source turns them into families when somebody asks. So the
inference path pays nothing for them. Names of inference counters are Triton's, so its dashboards work.
"""

import json
import logging
import re
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from itertools import count
from typing import Any, Literal, NamedTuple

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

request_id: ContextVar[str] = ContextVar("request_id", default="-")

# An id has only to differ from all others: a number of this process under the process's own random one.
_THIS_PROCESS = uuid.uuid4().hex[:16]
_NUMBERS = count(1)

trace_id: ContextVar[str] = ContextVar("trace_id", default="")

_TRACE = re.compile(rb"(?!ff)[0-9a-f]{2}-((?!0{32})[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_GIVEN_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Sample(NamedTuple):
    """One number under its labels; ``suffix`` is for the parts of a histogram."""

    labels: Mapping[str, str]
    value: float
    suffix: str = ""


class Family(NamedTuple):
    """All samples of one metric."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    text: str
    samples: tuple[Sample, ...]


Source = Callable[[], AsyncIterator[Family]]


class Metrics:
    """The page that Prometheus reads: this process, and what each source tells."""

    def __init__(self) -> None:
        self._sources: list[Source] = []
        self._process = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._process)

    def add(self, source: Source) -> None:
        """Ask ``source`` for its families at every scrape."""
        self._sources.append(source)

    async def page(self) -> bytes:
        """Return the text exposition; a source that fails is logged and left out."""
        lines: list[str] = []
        for source in self._sources:
            try:
                async for family in source():
                    lines.extend(_exposition(family))
            except Exception:
                logging.getLogger(__name__).exception("a source of metrics failed")
        return "".join(f"{line}\n" for line in lines).encode() + generate_latest(self._process)


def _exposition(family: Family) -> Iterator[str]:
    # Not through prometheus_client: it adds `_total` to the names of counters, and Triton's have none.
    if not family.samples:
        return
    yield f"# HELP {family.name} {_escape(family.text)}"
    yield f"# TYPE {family.name} {family.kind}"
    for sample in family.samples:
        labels = ",".join(f'{name}="{_escape(value, quotes=True)}"' for name, value in sample.labels.items())
        yield f"{family.name}{sample.suffix}{{{labels}}} {_number(sample.value)}"


def _escape(text: str, *, quotes: bool = False) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quotes else text


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else repr(float(value)).replace("inf", "Inf").replace("nan", "NaN")


def new_request_id(given: str | None) -> str:
    """Return the caller's id of a request where it is fit to be logged and echoed, otherwise a fresh one."""
    return given if given and _GIVEN_ID.fullmatch(given) else f"{_THIS_PROCESS}{next(_NUMBERS):016x}"


def trace_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the trace that a caller's W3C ``traceparent`` names, nothing where there is none that is well formed."""
    given = next((value for name, value in headers if name == b"traceparent"), b"")
    match = _TRACE.fullmatch(given)
    return match[1].decode() if match else ""


class _Json(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": request_id.get(),
        }
        if trace_id.get():
            line["trace_id"] = trace_id.get()
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


class _Text(logging.Formatter):
    """A line for people; the request id only where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        about = "" if request_id.get() == "-" else f" [{request_id.get()}]"
        line = f"{self.formatTime(record, '%H:%M:%S')} {record.levelname.lower()} {record.name}{about}: {record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


FORMATS: dict[str, type[logging.Formatter]] = {"json": _Json, "text": _Text}


def configure_logging(level: str, form: Literal["json", "text"]) -> None:
    """Send every log line of this process to stderr in the form asked for; uvicorn's too."""
    out = logging.StreamHandler(sys.stderr)
    out.setFormatter(FORMATS[form]())
    logging.basicConfig(level=level.upper(), handlers=[out], force=True)
    for name in ("uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, logging.getLogger().level))
