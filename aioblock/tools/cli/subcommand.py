"""`subcommand`: what every subcommand is: options that all have, and errors made into messages with hints."""

import functools
from collections.abc import Callable, Coroutine
from typing import Any

import click

from ..program import Interrupted, run
from .failures import Failure, explained
from .terminal import Terminal

__all__ = ["subcommand", "work"]


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
