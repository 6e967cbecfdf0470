"""`subcommand`: what every subcommand is: options that all have, and errors made into messages with hints."""

import functools
from collections.abc import Callable, Coroutine
from typing import Any

import click
from click.shell_completion import CompletionItem

from ..program import Interrupted, run
from .failures import Failure, explained
from .terminal import Terminal

__all__ = [
    "ImageName",
    "format_option",
    "image_argument",
    "reading_options",
    "subcommand",
    "trust_option",
    "work",
    "writing_options",
]


def subcommand(
    name: str, *, long: bool = False, **settings: Any
) -> Callable[[Callable[..., int | None]], click.Command]:
    """Make a function a subcommand. It is given a Terminal, then its own arguments; it returns the exit status.

    `long`: the work may take a while, so its progress can be asked for.
    """

    def make(function: Callable[..., int | None]) -> click.Command:
        @functools.wraps(function)
        def called(*, json: bool, quiet: bool, color: bool | None, progress: str = "auto", **arguments: Any) -> int:
            terminal = Terminal(json=json, quiet=quiet, color=color, progress=progress)
            return _guarded(terminal, lambda: function(terminal, **arguments))

        context = {"help_option_names": ["-h", "--help"], "max_content_width": 100, **settings.pop("context", {})}
        decorate: Callable[[Callable[..., int]], click.Command] = click.command(
            name, context_settings=context, **settings
        )
        made = decorate(called)
        made.params += _common(long)
        return made

    return make


def _common(long: bool) -> list[click.Parameter]:
    options: list[click.Parameter] = [
        click.Option(["--json"], is_flag=True, help="Print the result as one JSON document on stdout."),
        click.Option(
            ["-q", "--quiet"], is_flag=True, help="Print nothing but failures; the exit status says the rest."
        ),
        click.Option(
            ["--color/--no-color"],
            default=None,
            help="Colour or none, wherever it goes.  [default: where it is a terminal and NO_COLOR is not set]",
        ),
    ]
    if long:
        options.append(
            click.Option(
                ["--progress"],
                type=click.Choice(["auto", "bar", "json", "none"]),
                default="auto",
                show_default=True,
                help="How the work is shown, on stderr (stdout has the result): a bar, or a line of JSON a step.",
            )
        )
    return options


def _guarded(terminal: Terminal, body: Callable[[], int | None]) -> int:
    import aioblock

    try:
        return body() or 0
    except Failure as error:
        return _failed(terminal, error)
    except Interrupted as interrupted:
        terminal.failed(Failure("interrupted", hint=terminal.left, status=interrupted.status, kind="Interrupted"))
        return interrupted.status
    except BrokenPipeError:
        raise
    except (OSError, aioblock.BlockError) as error:
        return _failed(terminal, explained(error))


def _failed(terminal: Terminal, failure: Failure) -> int:
    terminal.failed(failure)
    return failure.status


def work(main: Callable[[], Coroutine[Any, Any, int | None]], *, fast: bool = True) -> int:
    """Run a coroutine function to its end; Ctrl-C cancels it, and waits until it has cleaned up.

    Raises: Interrupted; what it raises.
    """
    return run(main, fast=fast)


# -- arguments and options -------------------------------------------------------------------------------------------


class ImageName(click.ParamType[str]):
    """A file name, or any other name of an image: `protocol:...`, `json:{...}`. Completed as a file name."""

    name = "image"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Let the shell complete it as a file."""
        return [CompletionItem(incomplete, type="file")]


class FormatName(click.ParamType[str]):
    """The name of a format; the library knows which there are."""

    name = "format"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The formats."""
        from .format_choice import format_names

        return [CompletionItem(name) for name in format_names() if name.startswith(incomplete)]


_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def image_argument(name: str = "image") -> _Decorator:
    """An argument that names an image."""
    return click.argument(name, type=ImageName(), metavar=name.upper())


def format_option(*names: str, help: str) -> _Decorator:
    """An option that names a format."""
    return click.option(*names, type=FormatName(), metavar="FORMAT", help=help)


def trust_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Which of the files that an image names may be opened."""
    return click.option(
        "--trust",
        type=click.Choice(["all", "directory", "none"]),
        default="directory",
        show_default=True,
        help="Which files named inside the image may be opened: all, those in or below its directory, or none.",
    )(function)


def reading_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What subcommands take that only read an image."""
    function = click.option("-U", "--force-share", is_flag=True, help="Read it although another program writes to it.")(
        function
    )
    return writing_options(function)


def writing_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What subcommands take that open an image in whatever way."""
    function = trust_option(function)
    return format_option("-f", "--format", help="The format of the image.  [default: guessed from its content]")(
        function
    )
