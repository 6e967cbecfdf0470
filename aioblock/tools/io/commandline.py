"""The command line of the program."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..arguments import ArgumentError, Arguments
from ..program import ProgramError, define_object, print_error, print_version, program_name
from ..tracing import check_trace
from .opening import Mode

__all__ = ["CommandLine", "parse"]

_SHORT = "hVc:d:f:rsnCmki:t:T:U"
_LONG = {
    "help": "h",
    "version": "V",
    "cmd": "c:",
    "format": "f:",
    "read-only": "r",
    "snapshot": "s",
    "nocache": "n",
    "copy-on-read": "C",
    "misalign": "m",
    "native-aio": "k",
    "aio": "i:",
    "discard": "d:",
    "cache": "t:",
    "trace": "T:",
    "force-share": "U",
    "object": "object:",
    "image-opts": "image-opts",
}
_USAGE = """\
Usage: {program} [OPTIONS]... [-c STRING]... [file]
Read and write a disk image, request by request

  -c, --cmd STRING       run a command, and do not ask for any; may be repeated
  -f, --format FMT       the image's format (otherwise it is guessed)
  -r, --read-only        open the image read-only
  -s, --snapshot         write into a temporary overlay
  -n, --nocache          as -t none
  -C, --copy-on-read     keep in the image what is read from its backing file
  -m, --misalign         use memory that is not aligned (it never needs to be)
  -k, --native-aio       as -i native
  -i, --aio MODE         threads, native or io_uring: how the host is asked with -t none
  -t, --cache MODE       none, directsync, writeback, writethrough (the default) or unsafe
  -d, --discard MODE     ignore or unmap (the default)
  -T, --trace WHAT       [[enable=]PATTERN][,events=FILE][,file=FILE]; there are no events yet
  -U, --force-share      let others change the image meanwhile
      --image-opts       FILE is an option string: driver=qcow2,file.filename=x
      --object WHAT      define an object: secret,id=ID,data=...|file=...,format=raw|base64
  -h, --help             show this text
  -V, --version          show the version

See '{program} -c help' for the commands."""


@dataclass(slots=True)
class CommandLine:
    """What the command line asks for."""

    mode: Mode = field(default_factory=Mode)
    commands: list[str] = field(default_factory=list)
    image_opts: bool = False
    name: str | None = None


def parse(argv: Sequence[str]) -> CommandLine | int:
    """Read the command line; an exit status where nothing is left to do. Raises: ProgramError."""
    asked = CommandLine()
    arguments = Arguments(argv, _SHORT, _LONG)
    try:
        for option, value in arguments:
            match option:
                case "h":
                    print(_USAGE.format(program=program_name()))
                    return 0
                case "V":
                    print_version()
                    return 0
                case "c":
                    asked.commands.append(value)
                case "f":
                    asked.mode.format = value
                case "m":
                    pass
                case "T":
                    check_trace(value)
                case "image-opts":
                    asked.image_opts = True
                case "object":
                    define_object(value)
                case _:
                    asked.mode.take(option, value)
    except ArgumentError as error:
        print_error(str(error))
        return _wrong_usage()
    if len(arguments.operands) > 1:
        return _wrong_usage()
    if asked.image_opts and asked.mode.format is not None:
        raise ProgramError("--image-opts and -f are mutually exclusive")
    asked.name = arguments.operands[0] if arguments.operands else None
    return asked


def _wrong_usage() -> int:
    sys.stderr.flush()
    print(_USAGE.format(program=program_name()))
    return 1
