"""The program as a whole: which subcommands there are, and how it ends."""

import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from .failures import Failure
from .terminal import Terminal

__all__ = ["PROGRAM", "SECTIONS", "application", "run_program"]

PROGRAM = "aioblock"

SECTIONS = {
    "Look": {
        "info": "what an image is, its chain, snapshots and bitmaps",
        "map": "what every layer of a chain holds, as a picture",
        "check": "look for errors in an image, and repair them",
        "compare": "whether and where two images differ",
        "measure": "how large an image would become",
    },
    "Make and copy": {
        "create": "make an image",
        "convert": "copy an image into a new one of any format",
    },
    "Change": {
        "resize": "make a disk larger or smaller",
        "amend": "change options of an image",
        "snapshot": "keep, list, apply and delete internal snapshots",
        "bitmap": "dirty bitmaps: list, add, remove, merge",
        "commit": "write an image into its backing file",
        "rebase": "give an image another backing file",
    },
    "Serve": {
        "serve": "let other programs and hosts use images over NBD",
    },
    "Try": {
        "io": "single requests: read, write, zero, discard, status",
        "bench": "how fast images are",
    },
    "More": {
        "formats": "what formats there are, and their options",
        "completion": "completion of the command line for a shell",
    },
}
"""The subcommands, each a module of this package that is imported when it is asked for."""

_COMMANDS = {name: text for section in SECTIONS.values() for name, text in section.items()}


class _Application(click.Group):
    """A group that imports a subcommand when that is asked for: most of what they need, most calls do without."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of the help."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one."""
        if cmd_name not in _COMMANDS:
            return None
        found = import_module(f".{cmd_name}", __package__).command
        assert isinstance(found, click.Command)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """By section, and without importing them."""
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(list(commands.items()))


def _version(ctx: click.Context, parameter: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        import aioblock

        click.echo(f"{PROGRAM} {aioblock.__version__}")
        ctx.exit()


application = _Application(
    name=PROGRAM,
    help="Make, look at, copy, compare and check virtual disk images.",
    epilog="'aioblock COMMAND --help' says more. Sizes take the suffixes k, M, G, T, P and E (powers of 1024).",
    params=[
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_version,
            help="Show the version and end.",
        )
    ],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def run_program(words: Sequence[str]) -> int:
    """Run the program with these arguments; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal has no letters for stops nothing
    terminal = Terminal.for_failures(words)
    try:
        try:
            status = application.main(args=list(words), prog_name=PROGRAM, standalone_mode=False)
        finally:
            sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "")
        return 2
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else PROGRAM
        terminal.failed(Failure(error.format_message(), hint=f"'{command} --help' shows what it takes.", status=2))
        return 2
    except click.Abort:  # click's name for Ctrl-C
        raise KeyboardInterrupt from None
    except BrokenPipeError:
        _forget_stdout()
        return 1
    return int(status or 0)


def _forget_stdout() -> None:
    """Let the interpreter's last flush of stdout go nowhere, instead of complaining about a closed pipe."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError):
        pass
