"""`completion`: completion of the command line for a shell."""

from typing import TYPE_CHECKING

import click
from click.shell_completion import get_completion_class

from .subcommand import subcommand

if TYPE_CHECKING:
    from .terminal import Terminal

__all__ = ["command"]

_VARIABLE = "_AIOBLOCK_COMPLETE"


@subcommand("completion", short_help="completion of the command line for a shell")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(terminal: "Terminal", shell: str) -> None:
    """Print what makes SHELL complete the command lines of aioblock.

    \b
    bash: aioblock completion bash > ~/.local/share/bash-completion/completions/aioblock
    zsh:  aioblock completion zsh > "${fpath[1]}/_aioblock"
    fish: aioblock completion fish > ~/.config/fish/completions/aioblock.fish

    It is used by shells that are started afterwards.
    """
    from .application import PROGRAM, application

    kind = get_completion_class(shell)
    assert kind is not None
    values = kind(application, {}, PROGRAM, _VARIABLE)
    script = values.source_template % values.source_vars()
    script = script.rstrip("\n") + "\n"
    terminal.result({"shell": shell, "script": script})
    terminal.print_verbatim(script)
