"""The errors of aioblock.

    OSError                     a failed request; errno says why (EIO, ENOSPC, EACCES, EINVAL ...)
      NotSupported              ENOTSUP: this driver, image or build cannot do what was asked
      VerifyError               EIO: two images that must be the same are not (`blkverify`)
    BlockError                  everything else
      ImageError                what an image says about itself is unusable
        InvalidImage            not an image of this format, or a field out of its range
        CorruptImage            an image of this format whose metadata contradicts itself
        UnsupportedFeature      a feature that the image needs and aioblock does not have
      OptionError               an option or argument that makes no sense
      UntrustedReference        an image names a file that the trust policy does not let it open
      GraphError                how nodes are wired
        PermissionConflict      another user of the node does not share what was asked for
        NodeInUse               the node is still needed
      BitmapError               a dirty bitmap is not there, is there already, or is not fit for what was asked
      NbdError                  an NBD connection does not come about, or breaks
        LocalProtocolError      this side was about to break the protocol: a mistake in the program
        RemoteProtocolError     the other side broke it
        OptionRefused           the server refused an option of the handshake
      JobError                  a job could not be done

An error is built from fields, and its message from them, so that a program can act on the fields and a person can
read the message. `with_context` puts words before the message and leaves type and fields alone.
"""

import errno
from typing import TypeVar

__all__ = [
    "BitmapError",
    "BlockError",
    "CorruptImage",
    "GraphError",
    "ImageError",
    "InvalidImage",
    "JobError",
    "LocalProtocolError",
    "NbdError",
    "NodeInUse",
    "NotSupported",
    "OptionError",
    "OptionRefused",
    "PermissionConflict",
    "RemoteProtocolError",
    "UnsupportedFeature",
    "UntrustedReference",
    "VerifyError",
    "message_of",
    "with_context",
]


class NotSupported(OSError):
    """The driver, the image or this build cannot do what was asked (errno ENOTSUP).

    The generic code catches it where a fall-back exists, so a driver raises it before it has changed anything.
    """

    def __init__(self, message: str = "Operation not supported") -> None:
        super().__init__(errno.ENOTSUP, message)

    def __reduce__(self) -> tuple[type["NotSupported"], tuple[str]]:
        return type(self), (message_of(self),)  # OSError would call it with errno and message


class VerifyError(OSError):
    """Two images that must answer the same did not: the driver `blkverify` says so (errno EIO)."""


class BlockError(Exception):
    """Base of every error that is not a failed request."""

    def __init__(self, message: str, *, filename: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.filename = filename

    def __str__(self) -> str:
        return self.message


class ImageError(BlockError):
    """What an image says about itself is unusable.

    Fields: `filename`; `offset`, where in the file the bad field lies, in bytes, or None.
    """

    def __init__(self, message: str, *, filename: str | None = None, offset: int | None = None) -> None:
        super().__init__(message, filename=filename)
        self.offset = offset


class InvalidImage(ImageError):
    """Not an image of this format, or one with a field out of its range."""


class CorruptImage(ImageError):
    """An image of this format whose metadata contradicts itself."""


class UnsupportedFeature(ImageError):
    """The image needs a feature that aioblock does not have. Fields: `features`, the names of those it needs."""

    def __init__(self, message: str, *, features: tuple[str, ...] = (), filename: str | None = None) -> None:
        super().__init__(message, filename=filename)
        self.features = features


class OptionError(BlockError):
    """An option or argument that makes no sense. Fields: `option`, its name, or None."""

    def __init__(self, message: str, *, option: str | None = None, filename: str | None = None) -> None:
        super().__init__(message, filename=filename)
        self.option = option


class UntrustedReference(BlockError):
    """An image names another file, and the trust policy does not let it open that one.

    Fields: `filename`, the image that names it; `reference`, the name as it stands in the image.
    """

    def __init__(self, message: str, *, filename: str | None = None, reference: str = "") -> None:
        super().__init__(message, filename=filename)
        self.reference = reference


class GraphError(BlockError):
    """How nodes are wired does not allow what was asked. Fields: `node`, the name of the node."""

    def __init__(self, message: str, *, node: str | None = None, filename: str | None = None) -> None:
        super().__init__(message, filename=filename)
        self.node = node


class PermissionConflict(GraphError):
    """Another user of the node (or another process) does not share what was asked for."""


class NodeInUse(GraphError):
    """The node is still needed by somebody else."""


class BitmapError(BlockError):
    """A dirty bitmap is not there, is there already, or is not fit for what was asked. Fields: `name`, the bitmap's."""

    def __init__(self, message: str, *, name: str | None = None, filename: str | None = None) -> None:
        super().__init__(message, filename=filename)
        self.name = name


class NbdError(BlockError):
    """An NBD connection does not come about, or breaks."""


class LocalProtocolError(NbdError):
    """This side was about to break the protocol; nothing was sent."""


class RemoteProtocolError(NbdError):
    """The other side broke the protocol: nothing more can be believed of what it sends."""


class OptionRefused(NbdError):
    """The server refused an option. Fields: `option` and `reply`, the protocol's numbers; `words`, the server's own."""

    def __init__(self, message: str, *, option: int, reply: int, words: str = "") -> None:
        super().__init__(message)
        self.option = option
        self.reply = reply
        self.words = words


class JobError(BlockError):
    """A job could not be done."""


_E = TypeVar("_E", OSError, BlockError, Exception)


def message_of(error: BaseException) -> str:
    """What went wrong, without the errno and the file name that `str()` of an OSError adds."""
    if isinstance(error, OSError) and error.strerror:
        return str(error.strerror)
    return str(error)


def with_context(error: _E, before: str) -> _E:
    """Put words before the message of an error, in place; type, errno and fields stay. Returns the error."""
    if isinstance(error, OSError):
        error.strerror = before + message_of(error)
    elif isinstance(error, BlockError):
        error.message = before + error.message
    return error
