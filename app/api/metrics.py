"""`/metrics`: what the rooms know, as Prometheus families. Inference counters have Triton's names."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import accumulate, pairwise

from sqlalchemy import Engine, func, select
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.db import history, jobs, reading
from app.inference import describe
from app.inference.catalog import Catalog
from app.inference.served import Served
from app.inference.statistics import Statistics
from app.observability import CONTENT_TYPE, Family, Metrics, Sample
from app.totals import Tree

BATCH_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

# Triton's name → meaning, and where the number is. Times are in microseconds, as Triton's are.
COUNTERS: dict[str, tuple[str, Callable[[Statistics], int]]] = {
    "nv_inference_request_success": ("Requests answered.", lambda s: s.success.count),
    "nv_inference_request_failure": ("Requests refused or failed.", lambda s: s.fail.count),
    "nv_inference_count": ("Rows computed.", lambda s: s.inference_count),
    "nv_inference_exec_count": ("Runs of the model; one run may serve many requests.", lambda s: s.execution_count),
    "nv_inference_request_duration_us": ("Time of answered requests, end to end.", lambda s: s.success.ns // 1000),
    "nv_inference_queue_duration_us": ("Time that requests waited for their run.", lambda s: s.queue.ns // 1000),
    "nv_inference_compute_input_duration_us": ("Time spent reading requests.", lambda s: s.decode.ns // 1000),
    "nv_inference_compute_infer_duration_us": ("Time spent in the model.", lambda s: s.run.ns // 1000),
    "nv_inference_compute_output_duration_us": ("Time spent writing answers.", lambda s: s.encode.ns // 1000),
}


def route(metrics: Metrics, totals: Callable[[], Awaitable[Tree]]) -> Route:
    """Return the route of the page, whose numbers are those of the whole service, whichever of its processes answers."""

    async def page(_request: Request) -> Response:
        numbers = await totals()
        return Response(await metrics.page(numbers, inference(numbers)), media_type=CONTENT_TYPE)

    return Route("/metrics", page, methods=["GET"], include_in_schema=False)


def inference(totals: Tree) -> Iterator[Family]:
    """Tell what every version that was ever loaded has done."""
    known = describe.counted(totals)
    labels = {(model, version): {"model": model, "version": version} for model, version in known}
    for name, (text, number) in COUNTERS.items():
        yield Family(name, "counter", text, tuple(Sample(labels[key], number(known[key])) for key in known))
    batches = tuple(sample for key in known for sample in _batches(labels[key], known[key]))
    yield Family("specnorm_batch_rows", "histogram", "Rows of one run of the model.", batches)


async def live(catalog: Catalog) -> AsyncIterator[Family]:
    """Tell of every live version what waits for it, its bound and its sigmas."""
    served = [await catalog.get(model) for model, version in catalog.statistics() if catalog.live_version(model) == version]
    waiting = tuple(Sample(_of(one), one.waiting) for one in served)
    yield Family("nv_inference_pending_request_count", "gauge", "Requests that wait for a run.", waiting)
    bounds = tuple(Sample(_of(one), one.manifest.lipschitz.bound) for one in served if one.manifest.lipschitz.bound is not None)
    yield Family(
        "specnorm_lipschitz_bound", "gauge", "Lipschitz bound (L2) of the live version; absent where there is none.", bounds, "max"
    )
    for name, text in (("sigma_upper", "before the fold"), ("folded_sigma_upper", "in the bytes that are served")):
        samples = tuple(Sample({**_of(one), "layer": layer.name}, getattr(layer, name)) for one in served for layer in one.manifest.layers)
        yield Family(f"specnorm_{name}", "gauge", f"Rigorous upper bound of a layer's spectral norm {text}.", samples, "max")
    info = tuple(Sample({**_of(one), **_what(one)}, 1) for one in served)
    yield Family("specnorm_model_info", "gauge", "What is live, and where it runs.", info, "max")


async def stored(database: Engine) -> AsyncIterator[Family]:
    """Tell how many jobs are in each state, and how often a model's live version was changed."""
    states, moves = await asyncio.to_thread(_count, database)
    yield Family("specnorm_jobs", "gauge", "Fine-tune jobs by state.", states)
    yield Family("specnorm_swaps_total", "counter", "Changes of the live version.", moves)


def _count(database: Engine) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    by_state = select(jobs.c.state, func.count()).group_by(jobs.c.state)
    by_model = select(history.c.model, history.c.what, func.count()).group_by(history.c.model, history.c.what)
    with reading(database) as connection:
        states = tuple(Sample({"state": state}, count) for state, count in connection.execute(by_state))
        moves = tuple(Sample({"model": model, "what": what}, count) for model, what, count in connection.execute(by_model))
    return states, moves


def _of(served: Served) -> dict[str, str]:
    return {"model": served.name, "version": served.version}


def _what(served: Served) -> dict[str, str]:
    mode = served.manifest.gradient_mode
    return {"digest": served.digest, "device": served.device, "gradient_mode": "none" if mode is None else mode}


def _batches(labels: dict[str, str], statistics: Statistics) -> list[Sample]:
    sizes = {rows: batches.infer.count for rows, batches in statistics.batches.items()}
    bounds = (0, *BATCH_ROWS)
    counts = accumulate(sum(count for rows, count in sizes.items() if low < rows <= high) for low, high in pairwise(bounds))
    samples = [Sample({**labels, "le": str(bound)}, count, "_bucket") for bound, count in zip(BATCH_ROWS, counts, strict=True)]
    total = sum(sizes.values())
    rows = sum(size * count for size, count in sizes.items())
    return [*samples, Sample({**labels, "le": "+Inf"}, total, "_bucket"), Sample(labels, rows, "_sum"), Sample(labels, total, "_count")]
