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

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from app.totals import Tree, value_of

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
    """All samples of one metric; ``across`` is what becomes of those of several processes with the same labels."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    text: str
    samples: tuple[Sample, ...]
    across: Literal["sum", "max", "min"] = "sum"


Source = Callable[[], AsyncIterator[Family]]


class Metrics:
    """The page that Prometheus reads."""

    def __init__(self) -> None:
        self._own: list[Source] = [process]
        self._whole: list[Source] = []

    def add(self, source: Source, *, whole: bool = False) -> None:
        """Ask ``source`` for its families at every scrape; ``whole`` where it tells of the whole service, not of this process."""
        (self._whole if whole else self._own).append(source)

    async def numbers(self) -> Tree:
        """Return what the sources of this process tell; see :mod:`app.totals`."""
        kept: Tree = {}
        now: Tree = {}
        for family in await _told(self._own):
            (now if family.kind == "gauge" else kept)[family.name] = _tree(family)
        return {"kept": {"families": kept}, "now": {"families": now}}

    async def page(self, totals: Tree, more: Iterable[Family] = ()) -> bytes:
        """Return the text exposition, given the numbers of all processes; ``more`` comes first."""
        families = {family.name: _tree(family) for family in (*more, *await _told(self._whole)) if family.samples}
        families |= totals["kept"].get("families", {}) | totals["now"].get("families", {})
        return "".join(f"{line}\n" for name, family in families.items() for line in _exposition(name, family)).encode()


async def _told(sources: Iterable[Source]) -> list[Family]:
    """Return all families; a source that fails is logged and left out."""
    told: list[Family] = []
    for source in sources:
        try:
            told += [family async for family in source() if family.samples]
        except Exception:
            logging.getLogger(__name__).exception("a source of metrics failed")
    return told


_PROCESS = CollectorRegistry()
for _collector in (ProcessCollector, PlatformCollector, GCCollector):
    _collector(registry=_PROCESS)

# What a sum over processes would make nonsense of.
_ACROSS: dict[str, Literal["max", "min"]] = {"process_start_time_seconds": "min", "process_max_fds": "max", "python_info": "max"}


async def process() -> AsyncIterator[Family]:
    """Tell of this process: memory, time, descriptors, the interpreter."""
    yield Family("specnorm_processes", "gauge", "Serving processes.", (Sample({}, 1),))
    for metric in _PROCESS.collect():
        kind: Literal["counter", "gauge"] = "counter" if metric.type == "counter" else "gauge"
        samples = tuple(Sample(sample.labels, sample.value) for sample in metric.samples)
        name = metric.samples[0].name if metric.samples else metric.name
        yield Family(name, kind, metric.documentation, samples, _ACROSS.get(name, "sum"))


def _tree(family: Family) -> Tree:
    """Return a family as a branch of numbers."""
    samples = {
        f"{sample.suffix}{_labels(sample)}": sample.value if family.across == "sum" else {family.across: sample.value}
        for sample in family.samples
    }
    return {"kind": family.kind, "text": family.text, "samples": samples}


def _labels(sample: Sample) -> str:
    text = ",".join(f'{name}="{_escape(value, quotes=True)}"' for name, value in sample.labels.items())
    return f"{{{text}}}" if text else ""


def _exposition(name: str, family: Tree) -> Iterator[str]:
    # Not through prometheus_client: it adds `_total` to the names of counters, and Triton's have none.
    yield f"# HELP {name} {_escape(family['text'])}"
    yield f"# TYPE {name} {family['kind']}"
    for line, leaf in family["samples"].items():
        yield f"{name}{line} {_number(value_of(leaf))}"


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
