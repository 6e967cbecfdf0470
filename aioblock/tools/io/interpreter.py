"""One command line: which command it means, whether it may run now, and what its failure prints."""

import sys

from ..arguments import ArgumentError
from ..program import ProgramError, error_text, print_error
from .buffers import PatternFileError
from .command import Command, Words
from .failures import CommandFailed, WrongUsage
from .session import Session
from .table import find

__all__ = ["execute"]


async def execute(session: Session, line: str) -> None:
    """Run a command line; an empty one does nothing. A failure is printed and noted in the session."""
    words = [word for word in line.split(" ") if word]
    if not words:
        return
    command = find(words[0])
    if command is None:
        complain(session, f'command "{words[0]}" not found')
    elif command.needs_image and not session.is_open:
        complain(session, "no file open, try 'help open'")
    elif complaint := command.count_complaint(words[0], len(words) - 1):
        complain(session, complaint)
    elif command.writes and not session.disk.writable:
        session.failed = True
        print_error("Block node is read-only")
    else:
        await _run(session, command, words)


def complain(session: Session, message: str) -> None:
    """Print an error of a command to stderr as it is."""
    session.failed = True
    print(message, file=sys.stderr, flush=True)


async def _run(session: Session, command: Command, words: Words) -> None:
    from aioblock import BlockError

    try:
        await command.run(session, words)
        return
    except CommandFailed as failure:
        print(failure)
    except WrongUsage:
        print(command.usage())
    except ArgumentError as error:
        complain(session, f"{words[0]}: {error}")
        print(command.usage())
    except PatternFileError as error:
        complain(session, str(error))
    except ProgramError as error:
        print_error(error.message)
    except (OSError, BlockError) as error:
        print_error(error_text(error))
    session.failed = True
