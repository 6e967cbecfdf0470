"""aioblock-img: make, inspect, copy, compare and check disk images; the arguments are those of QEMU's qemu-img."""

import sys
from collections.abc import Sequence
from importlib import import_module

from ..program import finish, print_version, program_name
from ..tracing import check_trace
from .command import HelpAsked, usage_error

__all__ = ["main"]

COMMANDS = (
    "amend",
    "bench",
    "bitmap",
    "check",
    "commit",
    "compare",
    "convert",
    "create",
    "dd",
    "info",
    "map",
    "measure",
    "rebase",
    "resize",
    "snapshot",
)
"""Each is a module of this package, imported when it is asked for, with a `main(argv)` and a `USAGE`."""


def main(argv: Sequence[str] | None = None) -> int:
    """The program. Returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    return finish(lambda: _dispatch(words))


def _dispatch(words: list[str]) -> int:
    while words and words[0].startswith("-") and words[0] not in ("-", "--"):
        option = words.pop(0)
        name = option.partition("=")[0]
        if option == "-h" or (len(option) > 2 and "--help".startswith(option)):
            return _help()
        if option == "-V" or (len(option) > 2 and "--version".startswith(option)):
            print_version()
            return 0
        if name == "-T" or (len(name) > 2 and "--trace".startswith(name)) or option.startswith("-T"):
            check_trace(_trace_argument(option, words))
            continue
        raise usage_error(f"unrecognized option '{option}'")
    if words and words[0] == "--":
        words.pop(0)
    if not words:
        raise usage_error("Not enough arguments")
    command, *rest = words
    if command not in COMMANDS:
        raise usage_error(f"Command not found: {command}")
    try:
        return int(import_module(f"{__name__}.{command}").main(rest) or 0)
    except HelpAsked:
        return _help()


def _trace_argument(option: str, words: list[str]) -> str:
    """What stands behind -T or --trace, in the same word or the next one. Raises: ProgramError."""
    if option.startswith("--"):
        _, equals, value = option.partition("=")
    else:
        equals, value = option[2:], option[2:]
    if equals:
        return value
    if not words:
        raise usage_error(f"missing argument for option '{option}'")
    return words.pop(0)


def _help() -> int:
    print_version()
    print(f"usage: {program_name()} [standard options] command [command options]\n")
    print("Standard options:\n  -h, --help     show this text\n  -V, --version  show the version")
    print("  -T, --trace WHAT  [[enable=]PATTERN][,events=FILE][,file=FILE]; there are no events yet\n\nCommands:")
    for command in COMMANDS:
        print(f"  {command} {import_module(f'{__name__}.{command}').USAGE}")
    print("\nSizes take the suffixes k, M, G, T, P and E (powers of 1024). Cache modes of -t and -T: none, writeback,")
    print("writethrough, directsync, unsafe.")
    import aioblock

    print("\nSupported formats: " + " ".join(aioblock.driver_names()))
    return 0
