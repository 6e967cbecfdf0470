"""The table of all commands, and the command that shows it."""

from .aio import aio_flush, aio_read, aio_write
from .asking import alloc, info, length, map_
from .breaking import break_, remove_break, resume, wait_break
from .changing import discard, flush, truncate
from .command import Command, Words
from .control import abort, quit_, sigraise, sleep
from .failures import CommandFailed
from .opening import close, open_
from .reading import read, readv
from .reopening import reopen
from .session import Session
from .writing import write, writev

__all__ = ["COMMANDS", "find"]


async def help_(session: Session, words: Words) -> None:
    """Show all commands, or what there is to know of one. Raises: CommandFailed."""
    if len(words) == 1:
        for command in COMMANDS:
            print(command.usage())
        print("\nUse 'help commandname' for extended help.")
        return
    found = find(words[1])
    if found is None:
        raise CommandFailed(f"command {words[1]} not found")
    print(found.usage(words[1]))
    if found.help:
        print(f"\n{found.help}")


_REPORTS = """\
 -C  report in one line of comma-separated fields: bytes, requests, time, bytes per second, requests per second
 -q  report nothing
"""
_PATTERN = " -P  the byte to fill the range with, 0 to 255 (otherwise 0xcd)\n"
_CHECKS = """\
 -P  check that all that was read is this byte, 0 to 255
 -v  show what was read
"""
_BESIDE = """\
The command is done when the request has begun. What became of the request is printed when that is done, and does not
count for the exit status; aio_flush waits for all of them.
"""
_INVALID = " -i  count a request that a device would refuse, and do nothing else\n"

COMMANDS = (
    Command("abort", abort, "simulate a program crash using abort(3)", needs_image=False),
    Command("aio_flush", aio_flush, "completes all outstanding aio requests"),
    Command(
        "aio_read",
        aio_read,
        "asynchronously reads a number of bytes",
        "[-Ciqv] [-P pattern] off len [len..]",
        least=2,
        most=None,
        help=_BESIDE + _INVALID + _CHECKS + _REPORTS,
    ),
    Command(
        "aio_write",
        aio_write,
        "asynchronously writes a number of bytes",
        "[-Cfiquz] [-P pattern] off len [len..]",
        least=2,
        most=None,
        writes=True,
        help=_BESIDE
        + " -f  the data is on stable storage when the request is done\n"
        + _INVALID
        + _PATTERN
        + " -u  with -z: the storage may be given back\n"
        + " -z  write zeroes, the cheapest way there is; one length only\n"
        + _REPORTS,
    ),
    Command(
        "alloc",
        alloc,
        "checks if offset is allocated in the file",
        "offset [count]",
        "a",
        least=1,
        most=2,
    ),
    Command("break", break_, "sets a breakpoint on event and tags the stopped request as tag", "event tag", "", 2, 2),
    Command("close", close, "close the current open file", alias="c"),
    Command(
        "discard",
        discard,
        "discards a number of bytes at a specified offset",
        "[-Cq] off len",
        "d",
        least=2,
        most=None,
        writes=True,
        help="Says that a range is not needed any more.\n" + _REPORTS,
    ),
    Command("flush", flush, "flush all in-core file state to disk", alias="f"),
    Command("help", help_, "help for one or all commands", "[command]", "?", most=1, needs_image=False),
    Command("info", info, "prints information about the current file", alias="i"),
    Command("length", length, "gets the length of the current file", alias="l"),
    Command("map", map_, "prints the allocated areas of a file", ""),
    Command(
        "open",
        open_,
        "open the file specified by path",
        "[-rsCnkU] [-t cache] [-d discard] [-o options] [path]",
        "o",
        least=1,
        most=None,
        needs_image=False,
        help="""\
The image is writable and every write stable when it is done, unless an option says otherwise:
 -r  read-only
 -s  below a temporary overlay: what is written is gone when the image is closed
 -C  copy on read
 -n  as -t none
 -U  let others change the image meanwhile (read-only only)
 -i  how requests reach the host: threads, native or io_uring; checked, and without effect
 -k  as -i native
 -t  none, directsync, writeback, writethrough or unsafe
 -d  ignore or unmap
 -o  options of the drivers: driver=qcow2,file.filename=x
""",
    ),
    Command("quit", quit_, "exit the program", alias="q", most=None, needs_image=False),
    Command(
        "read",
        read,
        "reads a number of bytes at a specified offset",
        "[-abCqv] [-P pattern [-s off] [-l len]] off len",
        "r",
        least=2,
        most=None,
        help=" -b  the VM state, which lies behind the disk\n"
        + " -l  with -P: how much of what was read is checked\n"
        + " -s  with -P: where in it the check begins\n"
        + " -p  nothing, for old scripts\n"
        + _CHECKS
        + _REPORTS,
    ),
    Command(
        "readv",
        readv,
        "reads a number of bytes at a specified offset",
        "[-Cqv] [-P pattern] off len [len..]",
        least=2,
        most=None,
        help=_CHECKS + _REPORTS,
    ),
    Command("remove_break", remove_break, "remove a breakpoint by tag", "tag", "", 1, 1),
    Command(
        "reopen",
        reopen,
        "reopens an image with new options",
        "[(-r|-w)] [-c cache] [-o options]",
        most=None,
        help=" -r  read-only\n -w  writable\n -c  the cache mode, as -t of open takes it\n"
        + " -o  read-only, cache.direct and cache.no-flush\n",
    ),
    Command("resume", resume, "resumes the request tagged as tag", "tag", "", 1, 1),
    Command("sigraise", sigraise, "raises a signal", "signal", "", 1, 1, needs_image=False),
    Command("sleep", sleep, "waits for the given value in milliseconds", None, "", 1, 1, needs_image=False),
    Command(
        "truncate",
        truncate,
        "truncates the current file at the given offset",
        "[-m prealloc_mode] off",
        "t",
        least=1,
        most=3,
        writes=True,
        help=" -m  how much of a new range is allocated at once: off, metadata, falloc or full\n",
    ),
    Command("wait_break", wait_break, "waits for the suspension of a request", "tag", "", 1, 1),
    Command(
        "write",
        write,
        "writes a number of bytes at a specified offset",
        "[-bcCfnquz] [-P pattern | -s source_file] off len",
        "w",
        least=2,
        most=None,
        writes=True,
        help=" -b  the VM state, which lies behind the disk\n"
        + " -c  store the data compressed\n"
        + " -f  the data is on stable storage when the request is done\n"
        + " -n  with -z: fail rather than write a buffer of zeroes\n"
        + " -p  nothing, for old scripts\n"
        + _PATTERN
        + " -s  the file to fill the range with, again and again\n"
        + " -u  with -z: the storage may be given back\n"
        + " -z  write zeroes, the cheapest way there is\n"
        + _REPORTS,
    ),
    Command(
        "writev",
        writev,
        "writes a number of bytes at a specified offset",
        "[-Cfq] [-P pattern] off len [len..]",
        least=2,
        most=None,
        writes=True,
        help=" -f  the data is on stable storage when the request is done\n" + _PATTERN + _REPORTS,
    ),
)

_BY_NAME = {command.name: command for command in COMMANDS} | {
    command.alias: command for command in COMMANDS if command.alias
}


def find(name: str) -> Command | None:
    """The command of that name or alias."""
    return _BY_NAME.get(name)
