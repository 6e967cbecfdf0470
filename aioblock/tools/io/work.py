"""What the program does once its command line is read."""

from .commandline import CommandLine
from .interpreter import execute
from .opening import open_for
from .prompt import converse
from .session import Session

__all__ = ["work"]


async def work(asked: CommandLine) -> int:
    """Open the image, run the commands or ask for them, and close it. Returns the exit status. Raises: ProgramError."""
    async with Session(image_opts=asked.image_opts) as session:
        if asked.name is not None:
            await open_for(session, asked.name, asked.mode)
        for line in asked.commands:
            await execute(session, line)
            if session.over:
                break
        if not asked.commands:
            await converse(session)
    return int(session.failed)
