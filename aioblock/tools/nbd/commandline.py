"""The command line of the program."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..arguments import ArgumentError, Arguments
from ..program import CACHE_MODES, DISCARD_MODES, ProgramError, define_object, print_error, print_version, program_name

__all__ = ["CommandLine", "parse"]

_SHORT = "hVb:o:p:k:e:f:tl:x:T:D:AB:Lc:dnsrv"
_LONG = {
    "help": "h",
    "version": "V",
    "bind": "b:",
    "offset": "o:",
    "port": "p:",
    "socket": "k:",
    "read-only": "r",
    "allocation-depth": "A",
    "bitmap": "B:",
    "connect": "c:",
    "disconnect": "d",
    "list": "L",
    "snapshot": "s",
    "load-snapshot": "l:",
    "nocache": "n",
    "cache": "cache:",
    "aio": "aio:",
    "discard": "discard:",
    "detect-zeroes": "detect-zeroes:",
    "shared": "e:",
    "format": "f:",
    "persistent": "t",
    "verbose": "v",
    "object": "object:",
    "export-name": "x:",
    "description": "D:",
    "tls-creds": "tls-creds:",
    "tls-hostname": "tls-hostname:",
    "tls-authz": "tls-authz:",
    "image-opts": "image-opts",
    "trace": "T:",
    "fork": "fork",
    "pid-file": "pid-file:",
    "selinux-label": "selinux-label:",
}
_USAGE = """\
Usage: {program} [OPTIONS] FILE
  or:  {program} -L [OPTIONS]
  or:  {program} -d DEVICE
Serve a disk image over NBD

Where clients come in:
  -p, --port=PORT           TCP port (10809)
  -b, --bind=ADDRESS        address or name to listen at (0.0.0.0)
  -k, --socket=PATH         a Unix socket instead; an absolute path
                            (a socket that systemd opened is used before all of these)
  -e, --shared=NUM          how many clients at a time (1); 0: any number
  -t, --persistent          go on when the last client has gone
  -x, --export-name=NAME    the name of the export ('')
  -D, --description=TEXT    what to tell people about it
      --tls-creds=ID        clients must use TLS, with these credentials (see --object)
      --tls-authz=ID        and their certificates must be allowed by this list

What they see:
  -f, --format=FORMAT       the image's format (otherwise it is guessed)
      --image-opts          FILE is an option string: driver=qcow2,file.filename=x
  -r, --read-only           let nobody write
  -o, --offset=OFFSET       leave out that many bytes at the begin of the image
  -s, --snapshot            write into a temporary overlay
  -l, --load-snapshot=NAME  an internal snapshot, read-only: its id or name, or snapshot.id=ID,snapshot.name=NAME
  -A, --allocation-depth    offer the context qemu:allocation-depth
  -B, --bitmap=NAME         offer a dirty bitmap of the image; may be repeated
  -n, --nocache             as --cache=none
      --cache=MODE          none, directsync, writeback (the default), writethrough or unsafe
      --aio=MODE            threads, native or io_uring: how the host is asked with --cache=none
      --discard=MODE        ignore (the default) or unmap
      --detect-zeroes=MODE  off, on or unmap

The program:
      --fork                go to the background, when clients can come
      --pid-file=PATH       write the process id to this file, when clients can come
  -v, --verbose             say why clients are refused
      --object WHAT         define an object: secret, tls-creds-x509, tls-creds-psk, authz-simple, authz-list ...
  -T, --trace=WHAT          there are no events yet

Others:
  -L, --list                list the exports of a server (see -b, -p, -k, --tls-creds)
      --tls-hostname=NAME   the name that its certificate must be for
  -c, --connect=DEVICE      show the image as a /dev/nbdX, in the background (but for -v)
  -d, --disconnect          FILE is such a device: disconnect it
  -h, --help                show this text
  -V, --version             show the version"""

_MAX_NAME = 4096
_MAX_INT = (1 << 31) - 1
_AIO_MODES = ("threads", "native", "io_uring")
_ZERO_MODES = ("off", "on", "unmap")


@dataclass(slots=True)
class CommandLine:
    """What the command line asks for."""

    file: str = ""
    image_opts: bool = False
    format: str | None = None
    read_only: bool = False
    offset: int = 0
    snapshot: bool = False
    load_snapshot: Any = None
    cache: str = "writeback"
    aio: str | None = None
    discard: str = "ignore"
    detect_zeroes: str = "off"
    socket: str | None = None
    bind: str | None = None
    port: str | None = None
    shared: int = 1
    persistent: bool = False
    name: str | None = None
    description: str | None = None
    allocation_depth: bool = False
    bitmaps: list[str] = field(default_factory=list)
    tls_creds: str | None = None
    tls_authz: str | None = None
    tls_hostname: str | None = None
    fork: bool = False
    pid_file: str | None = None
    verbose: bool = False
    list_exports: bool = False
    connect: str | None = None
    disconnect: bool = False


def parse(argv: Sequence[str]) -> CommandLine | int:
    """Read the command line; an exit status where nothing is left to do. Raises: ProgramError."""
    asked = CommandLine()
    given: set[str] = set()
    arguments = Arguments(argv, _SHORT, _LONG)
    try:
        for option, value in arguments:
            if option == "h":
                print(_USAGE.format(program=program_name()))
                return 0
            if option == "V":
                print_version()
                return 0
            _take(asked, option, value, given)
            given.add(option)
    except ArgumentError as error:
        print_error(str(error))
        raise ProgramError(f"Try `{program_name()} --help' for more information.") from None
    _check(asked, given, arguments.operands)
    return asked


_FLAGS = {
    "A": "allocation_depth",
    "d": "disconnect",
    "L": "list_exports",
    "fork": "fork",
    "image-opts": "image_opts",
    "r": "read_only",
    "t": "persistent",
    "v": "verbose",
}
_WORDS = {
    "D": "description",
    "b": "bind",
    "c": "connect",
    "f": "format",
    "k": "socket",
    "p": "port",
    "pid-file": "pid_file",
    "tls-authz": "tls_authz",
    "tls-creds": "tls_creds",
    "tls-hostname": "tls_hostname",
    "x": "name",
}


def _take(asked: CommandLine, option: str, value: str, given: set[str]) -> None:
    if option in _FLAGS:
        setattr(asked, _FLAGS[option], True)
        return
    if option in _WORDS:
        setattr(asked, _WORDS[option], value)
        return
    match option:
        case "n" | "cache":
            if given & {"n", "cache"}:
                raise ProgramError("-n and --cache can only be specified once")
            asked.cache = "none" if option == "n" else value
            if asked.cache not in CACHE_MODES:
                raise ProgramError(f"Invalid cache mode `{value}'")
        case "aio":
            if option in given:
                raise ProgramError("--aio can only be specified once")
            if value not in _AIO_MODES:
                raise ProgramError(f"Invalid aio mode '{value}'")
            asked.aio = value
        case "discard":
            if option in given:
                raise ProgramError("--discard can only be specified once")
            if value not in DISCARD_MODES:
                raise ProgramError(f"Invalid discard mode `{value}'")
            asked.discard = DISCARD_MODES[value]
        case "detect-zeroes":
            if value not in _ZERO_MODES:
                raise ProgramError(f"Failed to parse detect_zeroes mode: invalid parameter value: {value}")
            asked.detect_zeroes = value
        case "o":
            asked.offset = _number(value, f"Invalid offset '{value}'")
        case "e":
            asked.shared = _number(value, f"Invalid shared device number '{value}'", _MAX_INT)
        case "B":
            asked.bitmaps.append(value)
        case "s":
            asked.snapshot = True
        case "l":
            asked.load_snapshot = _snapshot(value)
        case "object":
            define_object(value)
        case "selinux-label":
            raise ProgramError("SELinux labels are not supported")
        case "T":
            from ..tracing import check_trace

            check_trace(value)
        case _:
            raise ProgramError(f"-{option} is not supported")


def _number(text: str, message: str, most: int = (1 << 63) - 1) -> int:
    """A number in C's notation, not negative, at most `most`. Raises: ProgramError with `message`."""
    try:
        value = int(text, 8) if text.startswith("0") and text.isdigit() else int(text, 0)
    except ValueError:
        raise ProgramError(message) from None
    if not 0 <= value <= most:
        raise ProgramError(message)
    return value


def _snapshot(text: str) -> Any:
    from ..img.snapshot_source import parse_snapshot

    try:
        return parse_snapshot(text)
    except ProgramError:
        raise ProgramError(f"Failed in parsing snapshot param `{text}'") from None


def _check(asked: CommandLine, given: set[str], operands: list[str]) -> None:
    """What does not fit together. Raises: ProgramError."""
    if asked.list_exports:
        if operands:
            raise ProgramError("List mode is incompatible with a file name")
        if asked.fork:
            raise ProgramError("List mode is incompatible with forking")
        if given & {"x", "o", "f", "B", "A", "c", "d", "D", "l", "n", "cache", "aio", "discard"}:
            raise ProgramError("List mode is incompatible with per-device settings")
    elif len(operands) != 1:
        _wrong_number()
    else:
        asked.file = operands[0]
    if asked.tls_creds is None:
        for option in ("tls-authz", "tls-hostname"):
            if option in given:
                raise ProgramError(f"--{option} is not permitted without --tls-creds")
    elif asked.tls_hostname is not None and not asked.list_exports:
        raise ProgramError("TLS hostname is only supported with export list")
    if asked.tls_creds is not None and asked.connect is not None:
        raise ProgramError("TLS is not supported with a host device")
    if asked.image_opts and asked.format is not None:
        raise ProgramError("--image-opts and -f are mutually exclusive")
    if asked.detect_zeroes == "unmap" and asked.discard != "unmap":
        raise ProgramError("setting detect-zeroes to unmap is not allowed without setting discard operation to unmap")
    for what, text in (("name", asked.name), ("description", asked.description)):
        if text is not None and len(text.encode("utf-8", "surrogateescape")) > _MAX_NAME:
            raise ProgramError(f"export {what} '{text}' too long")
    if asked.socket is not None and not asked.socket.startswith("/"):
        raise ProgramError("socket path must be absolute")


def _wrong_number() -> None:
    print_error("Invalid number of arguments")
    from sys import stderr

    print(f"Try `{program_name()} --help' for more information.", file=stderr)
    raise ProgramError("")
