"""How a command fails: what it raises, and so where its message goes."""

__all__ = ["CommandFailed", "WrongUsage"]


class CommandFailed(Exception):
    """The command was not done; the message is printed to stdout as it is, among the other commands' output."""


class WrongUsage(Exception):
    """The command has the wrong operands; its usage is printed."""
