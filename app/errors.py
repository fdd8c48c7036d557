"""What can go wrong, as classes whose docstring is the default sentence. None knows a status: `app.api.errors` does."""


class SpecnormError(Exception):
    """Something went wrong."""

    code = "error"

    def __init__(self, message: str | None = None, *, param: str | None = None) -> None:
        super().__init__(message or type(self).__doc__ or "")
        self.param = param


class InvalidRequestError(SpecnormError):
    """The request is not what was expected."""

    code = "invalid_request"


class UnauthenticatedError(SpecnormError):
    """A key is needed: send `Authorization: Bearer <key>`."""

    code = "unauthenticated"


class ForbiddenError(SpecnormError):
    """The key does not have the scope that this route needs."""

    code = "forbidden"


class NotFoundError(SpecnormError):
    """There is no such thing."""

    code = "not_found"


class ConflictError(SpecnormError):
    """The state of the thing does not allow this."""

    code = "conflict"


class TooLargeError(SpecnormError):
    """The body is larger than the limit."""

    code = "too_large"


class UnsupportedMediaError(SpecnormError):
    """The content encoding is not one that is understood."""

    code = "unsupported_media"


class QueueFullError(SpecnormError):
    """Too many requests wait already; try again in a second."""

    code = "queue_full"


class UnavailableError(SpecnormError):
    """This cannot be done at the moment; try again later."""

    code = "unavailable"


class StorageFullError(SpecnormError):
    """The disk is full; nothing was kept of this request."""

    code = "storage_full"


class QuotaError(StorageFullError):
    """The stored files have reached their quota; nothing was kept of this request."""

    code = "quota_reached"


class CorruptError(SpecnormError):
    """A stored file is not the one that was recorded."""

    code = "corrupt"
