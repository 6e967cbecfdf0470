"""What went wrong, for people: a message, and what to do about it."""

import errno
from collections.abc import Callable
from typing import Any

__all__ = ["Failure", "explained"]


class Failure(Exception):
    """The program ends with this message and status; `hint` says what to do."""

    def __init__(self, message: str, *, hint: str = "", status: int = 1, kind: str = "Failure") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.status = status
        self.kind = kind
        """The name of the library's error where it was one."""

    def as_json(self) -> dict[str, Any]:
        """The document that `--json` prints in place of a result."""
        return {"error": {"kind": self.kind, "message": self.message, "hint": self.hint or None, "status": self.status}}


def explained(error: Exception, *, status: int = 1) -> Failure:
    """An error of the library, or of the system, with a hint where there is something to do about it."""
    from aioblock import PositionedError, message_of

    message = " ".join(message_of(error).splitlines())
    cause = error
    while isinstance(cause, PositionedError):
        cause = cause.error
    filename = getattr(error, "filename", None) or getattr(cause, "filename", None)
    if isinstance(filename, str) and filename and filename not in message:
        message = f"{filename}: {message}"
    return Failure(message, hint=_hint(cause, str(filename or "IMAGE")), status=status, kind=type(cause).__name__)


def _hint(error: Exception, image: str) -> str:
    import aioblock
    from aioblock import message_of

    if "Invalid password" in message_of(error):
        return "A key file counts to the byte, also the line break at its end: make it with printf, not with echo."
    hints: list[tuple[type[Exception], Callable[[Any], str]]] = [
        (aioblock.UntrustedReference, _untrusted),
        (aioblock.UnsupportedFeature, _unsupported),
        (aioblock.InvalidImage, lambda _: "If it is another format, say which: --format raw takes any file as it is."),
        (aioblock.CorruptImage, lambda _: f"'aioblock check {image}' says more; keep a copy before you repair it."),
        (aioblock.PermissionConflict, lambda _: "Another part of the same chain uses it; name each file only once."),
        (aioblock.OptionError, _option),
        (OSError, _system),
    ]
    for kind, hint in hints:
        if isinstance(error, kind):
            return hint(error)
    return ""


def _untrusted(error: Any) -> str:
    return (
        "Files named inside an image are opened from its own directory only. If you know where the image comes from, "
        "add --trust all. 'aioblock info --no-chain' looks at the image alone."
    )


def _unsupported(error: Any) -> str:
    return (
        f"It needs: {', '.join(error.features)}. Convert it with a program that knows that." if error.features else ""
    )


def _option(error: Any) -> str:
    import aioblock

    if "key-secret" in (error.option or "") or "key-secret" in str(error):
        return "It is encrypted: --key-file FILE names its passphrase, --key-file - asks for it."
    if error.option in ("driver", "format"):
        return "'aioblock formats' lists the formats."
    from .format_choice import format_names

    for format in format_names():
        if any(option.name == error.option for option in aioblock.find_driver(format).create_options):
            return f"'aioblock formats {format}' says what it takes as {error.option}."
    return ""


def _system(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        if "backing" in str(error.strerror):
            return (
                "The backing file is gone or has moved. Put it back, or name where it is now: "
                "aioblock rebase --unsafe --backing FILE IMAGE"
            )
        return "Check the name; a relative one counts from the current directory."
    return {
        errno.EAGAIN: "Stop the program that uses it. To only look at it as it is now, add --force-share.",
        errno.EADDRINUSE: "Something is there already. Take another one: --tcp HOST:PORT (port 0: any), --unix PATH.",
        errno.EACCES: "Check who may read and write the file: ls -l",
        errno.EPERM: "Check who may read and write the file: ls -l",
        errno.ENOSPC: "Make room on that file system, and start again: what was there before is unchanged.",
        errno.EROFS: "The file system is mounted read-only.",
        errno.EIO: "The storage below fails: look into the system's log. 'convert --salvage' copies what can be read.",
        errno.EFBIG: "The file system, or the format, cannot hold a file of that size (try a larger cluster_size).",
    }.get(error.errno or 0, "")
