"""Why an attempt failed, as the code and sentence that the job's error shows."""

import resource

from app.errors import SpecnormError


class JobFailedError(SpecnormError):
    """The job cannot be done; ``code`` says why in one word."""

    def __init__(self, code: str, message: str, *, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.code = code


def failure_of(error: Exception) -> JobFailedError:
    """Return what a client is told of an exception that nobody foresaw: never its text, which may name paths."""
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        allowed = resource.getrlimit(resource.RLIMIT_DATA)[0]
        there_is = "there is" if allowed == resource.RLIM_INFINITY else f"the {allowed / 2**20:.0f} MiB that it may have"
        return JobFailedError("oom", f"the job needs more memory than {there_is}: a smaller batch_size or data set may fit")
    return JobFailedError("internal", "the worker made a mistake; the service's log has the details")
