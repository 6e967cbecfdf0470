"""What goes wrong in a job, with the place where it did."""

from aioblock.base.errors import JobError, message_of

__all__ = ["PositionedError"]


class PositionedError(JobError):
    """A request that a job made has failed.

    Fields: `action`, one of "read", "write" and "status"; `offset` in bytes; `source`, which of the images that the
    job reads (0 the first; for "write" without meaning); `error`, what the request raised.
    """

    def __init__(self, action: str, offset: int, error: Exception, *, source: int = 0) -> None:
        what = {"read": "reading at byte", "write": "writing at byte", "status": "reading block status at offset"}
        super().__init__(f"error while {what[action]} {offset}: {message_of(error)}")
        self.action = action
        self.offset = offset
        self.error = error
        self.source = source
