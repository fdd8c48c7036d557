"""``python -m app.worker --workspace DIR --job ID --token N``: one attempt at one job. The dispatcher starts it."""

import argparse
import contextlib
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from app.errors import CorruptError, SpecnormError, StorageFullError, UnavailableError
from app.jobs.attempt import Attempt, FencedError
from app.jobs.store import Claim
from app.registry.registry import Registry
from app.registry.workspace import open_registry
from app.settings import Settings
from app.worker.failure import JobFailedError, failure_of
from app.worker.pulse import InterruptedJobError, Pulse

BEATS_PER_LEASE = 6
PRIORITY = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the attempt that the arguments name; 0 unless the job is to be taken from this worker and tried again."""
    parser = argparse.ArgumentParser(prog="python -m app.worker", description="Make one attempt at one job.")
    parser.add_argument("--workspace", type=Path, required=True, help="folder of the database and the stored files")
    parser.add_argument("--job", required=True, help="id of the job")
    parser.add_argument("--token", type=int, required=True, help="number of the attempt, as the claim gave it")
    options = parser.parse_args(arguments)
    settings = Settings(workspace=options.workspace)
    bound_memory(settings.job_max_bytes)
    registry = open_registry(settings)
    database = registry.database
    attempt = Attempt(database, Claim(options.job, options.token))
    pulse = Pulse(attempt, min(1.0, settings.lease_seconds / BEATS_PER_LEASE))
    signal.signal(signal.SIGTERM, lambda *_: pulse.interrupt("its worker was asked to end"))
    with pulse:
        yield_to_others()  # only now: a start at this priority might outlast the lease on a busy machine
        status = conclude(attempt, lambda: _work(attempt, registry, pulse, settings))
    registry.blobs.sweep()
    return status


def conclude(attempt: Attempt, work: Callable[[], None]) -> int:
    """Do ``work`` and bring its end, whatever it is, into the job's row."""
    try:
        try:
            work()
        except InterruptedJobError as error:
            attempt.release(f"The job goes back to the queue: {error}.")
        except JobFailedError as error:
            attempt.fail(error.code, str(error), param=error.param)
        except (FencedError, UnavailableError):
            raise
        except (StorageFullError, CorruptError) as error:
            attempt.fail(error.code, str(error))
        except Exception as error:  # the row must tell every end; the traceback is for the log alone
            traceback.print_exc()
            failure = failure_of(error)
            attempt.fail(failure.code, str(failure))
    except FencedError:
        return 0  # the job is another's, who tells its end
    except SpecnormError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def bound_memory(limit: int) -> None:
    """Let this process have at most ``limit`` bytes of memory of its own; an allocation past it fails the job, and nothing else."""
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def yield_to_others() -> None:
    """Leave the processor to the serving process, as far as the system lets us.

    In a session of its own a process is weighed by its group, so that niceness alone does nothing. A weight of a tenth (10), not of a
    seventieth (19): where other work fills every core, the heart must still beat within the lease.
    """
    os.nice(PRIORITY)
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(PRIORITY))


def _work(attempt: Attempt, registry: Registry, pulse: Pulse, settings: Settings) -> None:
    try:
        from app.worker.tune import tune  # noqa: PLC0415  # seconds of torch, during which the heart beats already
    except ImportError as error:
        raise JobFailedError("unavailable", f"this installation cannot train: the package {error.name} is missing") from error
    tune(attempt, registry, pulse, threads=settings.job_threads)


if __name__ == "__main__":
    sys.exit(main())
