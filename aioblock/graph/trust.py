"""The trust policy: which files named *inside* an image may be opened.

An image is untrusted input. A name in it is data until the policy has agreed: it is never taken as options, and as a
protocol only where the policy lets it. The caller's own names and options are trusted.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

from aioblock.base.errors import UntrustedReference
from aioblock.core.images import InnerName, Role
from aioblock.core.registry import find_protocol
from aioblock.graph.names import beside, check_path, has_protocol, strip_protocol, to_options

__all__ = ["TRUST_ALL", "TRUST_DIRECTORY", "TRUST_NONE", "Reference", "TrustPolicy", "trusted"]


class Reference(NamedTuple):
    """A file named inside an image."""

    image: str
    """The name of the image that names it; "" where it has none."""
    role: Role
    name: str
    """The name as it stands in the image."""
    path: str | None
    """The local path that it means; None where it means something else (a protocol, `json:`)."""
    format: str | None
    """The format that the image claims for it."""


TrustPolicy = Callable[[Reference], bool]
"""Says whether a reference may be opened."""


def TRUST_ALL(reference: Reference) -> bool:  # noqa: N802 - a constant to those who use it
    """Everything may be opened, as QEMU's programs do: only for images of people you trust."""
    return True


def TRUST_NONE(reference: Reference) -> bool:  # noqa: N802 - as above
    """Nothing may be opened."""
    return False


def TRUST_DIRECTORY(reference: Reference) -> bool:  # noqa: N802 - as above
    """Regular files in or below the directory of the image that names them, links followed; no network. The default."""
    if reference.path is None or not reference.image:
        return False
    if reference.format is not None and find_protocol(reference.format) is not None:
        return False  # it would be the protocol that says what the path means
    home = os.path.realpath(os.path.dirname(reference.image) or ".")
    target = os.path.realpath(reference.path)
    return os.path.commonpath((home, target)) == home and (os.path.isfile(target) or not os.path.lexists(target))


def trusted(image: str, role: Role, name: InnerName, policy: TrustPolicy) -> dict[str, Any]:
    """The options that a name inside an image means. Raises: UntrustedReference where the policy forbids to open it."""
    text = beside(image, name.filename)
    path = strip_protocol(text) if text.startswith("file:") or not has_protocol(text) else None
    check_path(text)
    if not policy(Reference(image, role, name.filename, path, name.format)):
        raise UntrustedReference(
            f"'{image}' names '{name.filename}' as its {role} file, and the trust policy forbids that",
            filename=image,
            reference=name.filename,
        )
    # Options inside a name are followed only for a caller whose policy lets everything through.
    options = to_options(text) if path is None else {"filename": text}
    if name.format is not None:
        options.setdefault("driver", name.format)
    return options
