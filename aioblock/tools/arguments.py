"""Command lines read as GNU getopt_long reads them: bundled short options, abbreviated long ones, operands anywhere.

    arguments = Arguments(argv, "hf:U", {"help": "h", "output": "output:", "force-share": "U"})
    for option, value in arguments:
        ...
    arguments.operands

Short options stand in one string, a colon behind each that takes a value. Long options map to the key that they are
reported under, again with a colon where they take a value. Options come one by one, so a program that stops at the
first wrong one does so in the order of the command line.
"""

from collections.abc import Iterator, Mapping, Sequence

__all__ = ["ArgumentError", "Arguments"]


class ArgumentError(Exception):
    """An option that is unknown or incomplete.

    Fields: `kind`, one of "unknown", "missing" (its value), "superfluous" (its value), "ambiguous"; `option`, "z" or
    "--long"; `word`, the word of the command line that QEMU's programs name: the one that was done with last, which is
    the one before where the option is not the last letter of its word. The message is what getopt itself prints.
    """

    def __init__(self, kind: str, option: str, word: str, candidates: Sequence[str] = ()) -> None:
        long = option.startswith("--")
        if kind == "unknown":
            text = f"unrecognized option '{word.partition('=')[0]}'" if long else f"invalid option -- '{option}'"
        elif kind == "missing":
            text = f"option '{option}' requires an argument" if long else f"option requires an argument -- '{option}'"
        elif kind == "superfluous":
            text = f"option '{option}' doesn't allow an argument"
        else:
            possible = " ".join(f"'--{name}'" for name in candidates)
            text = f"option '{word.partition('=')[0]}' is ambiguous; possibilities: {possible}"
        super().__init__(text)
        self.kind = kind
        self.option = option
        self.word = word


class Arguments:
    """The options of a command line, one by one, and its operands once all options have been read."""

    def __init__(self, argv: Sequence[str], short: str, long: Mapping[str, str] | None = None) -> None:
        self._words = list(argv)
        self._short = {
            letter: short[number + 1 : number + 2] == ":" for number, letter in enumerate(short) if letter != ":"
        }
        self._long = dict(long or {})
        self.operands: list[str] = []
        self._before = ""  # the word before the one that is being read

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """(key, value) of each option; the value is "" where it takes none. Raises: ArgumentError."""
        words = self._words
        everything = ["", *words]
        while words:
            self._before = everything[-len(words) - 1]
            word = words.pop(0)
            if word == "--":
                self.operands += words
                return
            if word.startswith("--"):
                yield self._long_option(word)
            elif word.startswith("-") and word != "-":
                yield from self._short_options(word)
            else:
                self.operands.append(word)

    def _short_options(self, word: str) -> Iterator[tuple[str, str]]:
        for number, letter in enumerate(word[1:], 2):
            takes_value = self._short.get(letter)
            if takes_value is None:
                last = number == len(word)
                before = self.operands[-1] if self.operands else self._before
                raise ArgumentError("unknown", letter, word if last or not before else before)
            if not takes_value:
                yield letter, ""
                continue
            if number < len(word):
                yield letter, word[number:]
            elif self._words:
                yield letter, self._words.pop(0)
            else:
                raise ArgumentError("missing", letter, word)
            return

    def _long_option(self, word: str) -> tuple[str, str]:
        name, equals, value = word[2:].partition("=")
        if name in self._long:
            found = [name]
        else:
            found = [candidate for candidate in self._long if candidate.startswith(name)]
        if not found:
            raise ArgumentError("unknown", "--" + name, word)
        if len({self._long[candidate] for candidate in found}) > 1:
            raise ArgumentError("ambiguous", "--" + name, word, found)
        key = self._long[found[0]]
        if not key.endswith(":"):
            if equals:
                raise ArgumentError("superfluous", "--" + found[0], word)
            return key, ""
        if not equals:
            if not self._words:
                raise ArgumentError("missing", "--" + found[0], word)
            value = self._words.pop(0)
        return key[:-1], value
