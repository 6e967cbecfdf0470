"""`--fork`: the server goes on as a process of its own, and the one that was called returns when clients can come."""

import os
import sys
from collections.abc import Callable

from .commandline import CommandLine

__all__ = ["run_forked"]

_READY = b"r"
_PIECE = 4096


def run_forked(asked: CommandLine, serve: Callable[[CommandLine, Callable[[], None]], int]) -> int:
    """Call `serve` in a new process; returns 0 in this one when it says that it is ready, else its exit status.

    What it says on stderr until then comes out here. In the new process it returns what `serve` returned.
    """
    sys.stdout.flush()
    words, words_in = os.pipe()
    ready, ready_in = os.pipe()
    child = os.fork()
    if child:
        os.close(words_in)
        os.close(ready_in)
        return _wait(child, words, ready)
    os.close(words)
    os.close(ready)
    os.setsid()
    stderr_of_old = os.dup(2) if asked.verbose else -1
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.dup2(words_in, 2)
    os.close(words_in)

    def is_ready() -> None:
        sys.stderr.flush()
        os.write(ready_in, _READY)
        os.close(ready_in)
        if asked.verbose:
            os.dup2(stderr_of_old, 2)
            os.close(stderr_of_old)
        else:
            os.dup2(null, 2)
        os.close(null)

    return serve(asked, is_ready)


def _wait(child: int, words: int, ready: int) -> int:
    """Pass on what the child says, until it says that it is ready, or ends."""
    with open(words, "rb", 0) as said, open(ready, "rb", 0) as told:
        while piece := said.read(_PIECE):
            sys.stderr.buffer.write(piece)
            sys.stderr.flush()
        if told.read(1) == _READY:
            return 0
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or 1
