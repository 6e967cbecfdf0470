"""Access: how the user wants images opened; the options of every subcommand that opens one."""

import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import click

from .parameters import FormatName

__all__ = ["Access", "key_option", "looking_options", "read_key", "reading_options", "trust_option", "writing_options"]


class Access(NamedTuple):
    """What the options of a subcommand say about opening its image."""

    format: str | None = None
    """None: guessed from its content."""
    trust: str = "directory"
    """Which files named inside the image may be opened: all, directory or none."""
    force_share: bool = False
    """Although another program writes to it."""
    key: bytes | None = None
    """The passphrase of an encrypted image."""


_FORMAT = click.Option(
    ["-f", "--format"],
    type=FormatName(),
    metavar="FORMAT",
    help="The format of the image.  [default: guessed from its content]",
)
_TRUST = click.Option(
    ["--trust"],
    type=click.Choice(["all", "directory", "none"]),
    default="directory",
    show_default=True,
    help="Which files named inside the image may be opened: all, those in or below its directory, or none.",
)
_KEY_FILE = click.Option(
    ["--key-file"],
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="The passphrase of an encrypted image: what is in this file, to the byte; - asks for it.",
)
_FORCE_SHARE = click.Option(
    ["-U", "--force-share"], is_flag=True, help="Read it although another program writes to it."
)


def reading_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a subcommand that only reads an image its options; it is given an `access`."""
    return _with_access(function, (_FORMAT, _TRUST, _KEY_FILE, _FORCE_SHARE))


def looking_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same for one that shows what an image says about itself: that needs no key."""
    return _with_access(function, (_FORMAT, _TRUST, _FORCE_SHARE))


def writing_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same for a subcommand that changes an image."""
    return _with_access(function, (_FORMAT, _TRUST, _KEY_FILE))


def _with_access(function: Callable[..., Any], options: tuple[click.Option, ...]) -> Callable[..., Any]:
    @functools.wraps(function)
    def called(*args: Any, **arguments: Any) -> Any:
        key_file = arguments.pop("key_file", None)
        given = {name: arguments.pop(name) for name in ("format", "trust", "force_share") if name in arguments}
        access = Access(**given, key=None if key_file is None else read_key(key_file))
        return function(*args, access=access, **arguments)

    return _with_options(called, options)


def trust_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """The option `--trust` alone."""
    return _with_options(function, (_TRUST,))


def key_option(*names: str, help: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """An option that names the file of a passphrase."""
    kind = click.Path(exists=True, dir_okay=False, allow_dash=True)
    return click.option(*names, type=kind, metavar="FILE", help=help)


def read_key(path: str) -> bytes:
    """The passphrase in a file; "-": the one that is typed, or the first line of stdin. Raises: OSError."""
    if path != "-":
        with open(path, "rb") as file:
            return file.read()
    if not sys.stdin.isatty():
        return sys.stdin.buffer.readline().rstrip(b"\n")
    return str(click.prompt("Passphrase", hide_input=True, err=True)).encode()


def _with_options(function: Callable[..., Any], options: tuple[click.Option, ...]) -> Callable[..., Any]:
    known = getattr(
        function, "__click_params__", []
    )  # where click keeps what its own decorators add, the last one first
    function.__click_params__ = [*known, *reversed(options)]  # type: ignore[attr-defined]
    return function
