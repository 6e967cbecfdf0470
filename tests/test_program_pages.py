"""The pages of the programs hold: every option of `--help` stands in the page of its program, and the other way round.

A program is a row of `PROGRAMS`: its page, and a function that says which options `--help` shows, by subcommand ("" is
the program itself). In a page the options of a subcommand stand in the tables of the section that has its name, in the
first column; what stands before the first such section is for the program itself, or for all of its subcommands.
"""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent

OPTION = re.compile(r"(?<![\w-])--?[A-Za-z][\w-]*")

pytestmark = pytest.mark.slow


def printed(module: str, *args: str) -> str:
    """What a program prints."""
    code = f"import sys; sys.argv[0] = 'program'; from {module} import main; sys.exit(main({list(args)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=45, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def click_options() -> dict[str, set[str]]:
    """Of `aioblock`: the lines below "Options:" of each subcommand's own help."""
    from tests.tools.cli.test_application import leaves

    found = {}
    for path, command in leaves():
        import click

        text = command.get_help(click.Context(command, info_name=" ".join(path), help_option_names=["-h", "--help"]))
        _, _, options = text.partition("\nOptions:\n")
        heads = [line.strip().split("  ")[0] for line in options.splitlines() if re.match(r"  -", line)]
        found[" ".join(path)] = {option for head in heads for option in OPTION.findall(head)}
    return found


def usage_options() -> dict[str, set[str]]:
    """Of `aioblock-img`: the lines of usage that its help has for each command."""
    standard, _, commands = printed("aioblock.tools.img", "--help").partition("\nCommands:\n")
    found = {
        "": {option for line in standard.splitlines() if line.startswith("  -") for option in OPTION.findall(line)}
    }
    for line in commands.partition("\n\n")[0].splitlines():
        name, _, usage = line.strip().partition(" ")
        found[name] = set(OPTION.findall(usage))
    return found


def listed_options(module: str) -> dict[str, set[str]]:
    """Of `aioblock-io` and `aioblock-nbd`: the lines that begin with an option."""
    lines = [line for line in printed(module, "--help").splitlines() if re.match(r" +-", line)]
    return {"": {option for line in lines for option in OPTION.findall(re.split(r" {2,}", line.strip())[0])}}


class Program(NamedTuple):
    page: str
    options: Callable[[], dict[str, set[str]]]
    section: str
    """What a heading of a subcommand begins with."""


PROGRAMS = {
    "aioblock": Program("aioblock.md", click_options, "### "),
    "aioblock-img": Program("aioblock-img.md", usage_options, "## "),
    "aioblock-io": Program("aioblock-io.md", lambda: listed_options("aioblock.tools.io"), "# none "),
    "aioblock-nbd": Program("aioblock-nbd.md", lambda: listed_options("aioblock.tools.nbd"), "# none "),
}


def page_options(text: str, section: str) -> dict[str, set[str]]:
    """The options that stand in the tables of a page, by the section; those before the first are under ""."""
    found: dict[str, set[str]] = {"": set()}
    name = ""
    for line in text.splitlines():
        if line.startswith(section):
            name = line[len(section) :].strip()
            found[name] = set()
        elif line.startswith("| `-"):
            first = line.split(" | ")[0]
            found[name] |= {OPTION.match(code).group() for code in re.findall(r"`([^`]+)`", first)}  # type: ignore[union-attr]
    return found


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_page_has_every_option_and_no_other(name):
    program = PROGRAMS[name]
    said = program.options()
    written = page_options((ROOT / "docs" / program.page).read_text(), program.section)
    common = written[""] if "" not in said else set()
    assert {section for section in written if section} == {section for section in said if section}
    for section, options in said.items():
        assert written[section] | (common if section else set()) == options, section


def test_common_options_are_those_that_every_subcommand_has():
    said = click_options()
    written = page_options((ROOT / "docs" / "aioblock.md").read_text(), "### ")
    assert written[""] == set.intersection(*said.values())


def test_the_page_of_aioblock_io_has_every_command():
    said = {line.split()[0] for line in printed("aioblock.tools.io", "-c", "help").splitlines() if " -- " in line}
    text = (ROOT / "docs" / "aioblock-io.md").read_text().partition("\n## Commands\n")[2]
    written = {
        code
        for line in text.splitlines()
        if line.startswith("| `")
        for code in re.findall(r"`(\w+)`", line.split(" | ")[0])
    }
    assert written == said


def test_every_program_that_is_installed_has_a_row():
    import tomllib

    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert set(scripts) == set(PROGRAMS)


def test_a_page_that_lacks_an_option_is_found():
    """The comparison itself can fail."""
    text = "| `-h`, `--help` | x |\n## one\n| `-a file`, `--all` | x `-z` |\n| `--size=N` | y |\n"
    assert page_options(text, "## ") == {"": {"-h", "--help"}, "one": {"-a", "--all", "--size"}}
