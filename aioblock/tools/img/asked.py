"""What the command line of a subcommand asks for: the options that many of them have stand here, once."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ..program import ProgramError, define_object
from .command import Options, check_image_opts, parse_output

__all__ = ["Asked", "OptionList", "long_options"]

_LONG = {
    "force-share": "U",
    "format": "f:",
    "image-opts": "image-opts",
    "object": "object:",
    "output": "output:",
    "progress": "p",
}
"""The long options that several subcommands have, and the keys that they are taken by."""

_WORDS = {"f": "format", "t": "cache", "T": "source_cache"}
"""The options whose value becomes an attribute as it is."""

_SWITCHES = {"U": "force_share", "image-opts": "image_opts", "p": "shown", "q": "quiet"}
"""Those that make an attribute true."""


def long_options(*shared: str, **own: str) -> dict[str, str]:
    """The long options of a subcommand: some that others have too, and its own with their keys, as in `Arguments`.

    An underscore in the name of one of its own stands for a dash.
    """
    return {name: _LONG[name] for name in shared} | {name.replace("_", "-"): key for name, key in own.items()}


class OptionList:
    """What the `-o` of one command line say, together."""

    def __init__(self) -> None:
        self.text = ""

    def add(self, text: str) -> None:
        """One more `-o`. Raises: ProgramError."""
        commas = len(text) - len(text.rstrip(","))
        if not text or text.startswith(",") or commas % 2:
            raise ProgramError(f"Invalid option list: {text}")
        self.text = f"{self.text},{text}" if self.text else text

    def __bool__(self) -> bool:
        return bool(self.text)

    @property
    def asks_help(self) -> bool:
        """Whether one of the words is `help` or `?`."""
        return any(word in ("help", "?") for word in self.text.replace(",,", "").split(","))

    def values(self) -> dict[str, str]:
        """The options, as strings. Raises: OptionError."""
        from aioblock import parse_keyval

        return dict(parse_keyval(self.text)) if self.text else {}


class Asked:
    """A command line, read in its order. A subcommand says which options it has, and takes those that are its own.

    Raises, while it is made: ProgramError; HelpAsked.
    """

    SHORT: ClassVar[str] = ""
    GETOPT: ClassVar[str | None] = None
    """See `Options`."""
    LONG: ClassVar[Mapping[str, str]] = {}
    WORDS: ClassVar[Mapping[str, str]] = {}
    """Of its own: options whose value becomes an attribute, by their keys."""
    SWITCHES: ClassVar[Mapping[str, str]] = {}
    """Of its own: those that make an attribute true."""

    format: str | None = None
    image_opts = force_share = False
    cache = source_cache = "writeback"
    json = quiet = shown = False
    """`shown`: the progress is."""

    def __init__(self, argv: Sequence[str]) -> None:
        self.given = OptionList()
        self.options = Options(argv, self.SHORT, self.LONG, self.GETOPT)
        for option, value in self.options:
            self.take(option, value)
        self.operands = self.options.operands

    def take(self, option: str, value: str) -> None:
        """One option. A subcommand takes its own, and hands the others on. Raises: ProgramError."""
        words, switches = {**_WORDS, **self.WORDS}, {**_SWITCHES, **self.SWITCHES}
        if option in words:
            setattr(self, words[option], value)
        elif option in switches:
            setattr(self, switches[option], True)
        elif option == "output":
            self.json = parse_output(value)
        elif option == "o":
            self.given.add(value)
        elif option == "object":
            define_object(value)
        else:
            raise AssertionError(f"nobody takes the option {option}")

    def check_format(self, status: int = 1) -> None:
        """`--image-opts` names the format itself. Raises: ProgramError."""
        check_image_opts(self.image_opts, self.format, status)

    def one_image(self) -> str:
        """The only operand. Raises: ProgramError."""
        return self.options.one_image()

    def how(self) -> dict[str, Any]:
        """How the image is opened, for `opened`, as far as every subcommand has that."""
        return {"image_opts": self.image_opts, "format": self.format, "force_share": self.force_share}
