"""The program as a whole: its help, its failures, what it says where packages are missing."""

import os
import subprocess
import sys
from importlib import import_module

import click
import pytest

from aioblock.tools.cli.application import SECTIONS, application

COMMANDS = [name for section in SECTIONS.values() for name in section]


def leaves(command=application, path=()):
    """Every subcommand that does something, with the words that it is called by."""
    if not isinstance(command, click.Group):
        return [(path, command)]
    context = click.Context(command)
    return [
        leaf
        for name in command.list_commands(context)
        for leaf in leaves(command.get_command(context, name), (*path, name))
    ]


def test_help_names_every_subcommand(program):
    text = program.ok("--help").out
    for name in COMMANDS:
        assert f"\n  {name} " in text


@pytest.mark.parametrize("name", COMMANDS)
def test_what_the_help_says_of_a_subcommand_is_what_it_says_of_itself(name):
    said = next(section[name] for section in SECTIONS.values() if name in section)
    command = import_module(f"aioblock.tools.cli.{name}").command
    if not isinstance(command, click.Group):
        assert command.get_short_help_str(200).rstrip(".") == said


@pytest.mark.parametrize("path", [path for path, _ in leaves()], ids=" ".join)
def test_every_subcommand_has_the_common_options(path, program):
    text = program.ok(*path, "--help").out
    for option in ("--json", "--quiet", "--color / --no-color", "--help"):
        assert option in text


@pytest.mark.parametrize("path", [path for path, _ in leaves()], ids=" ".join)
def test_every_option_is_explained(path, program):
    command = dict(leaves())[path]
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
            assert parameter.help.rstrip("]").endswith((".", "]")) or "[default" in parameter.help, parameter.help


def test_version(program):
    import aioblock

    assert program.ok("--version").out == f"aioblock {aioblock.__version__}\n"


def test_without_arguments_it_shows_the_help(program):
    result = program()
    assert result.status == 2
    assert "Usage: aioblock" in result.out


@pytest.mark.parametrize("args", [("nosuch",), ("info",), ("info", "--nosuch", "x"), ("resize", "x", "5q")])
def test_a_wrong_command_line_ends_with_2_and_says_where_help_is(program, args):
    result = program(*args)
    assert result.status == 2
    assert result.out == ""
    assert result.err.startswith("aioblock: ")
    assert "--help' shows what it takes" in result.err


def test_a_wrong_command_line_is_a_document_too(program):
    result = program("info", "--json")
    assert result.status == 2
    assert result.json["error"]["status"] == 2
    assert "IMAGE" in result.json["error"]["message"]


def test_a_failure_says_what_to_do_and_is_a_document_too(program):
    result = program("info", "nosuch.qcow2", "--json")
    assert result.status == 1
    assert "nosuch.qcow2" in result.err and "hint: Check the name" in result.err
    assert result.json == {
        "error": {
            "kind": "FileNotFoundError",
            "message": "Could not open 'nosuch.qcow2': No such file or directory",
            "hint": "Check the name; a relative one counts from the current directory.",
            "status": 1,
        }
    }


BLOCKED = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named '{{name}}'", name=name)
sys.meta_path.insert(0, Missing())
from {module} import main
sys.exit(main({args!r}))
"""


def without(names, args, folder, module="aioblock.tools.cli"):
    code = BLOCKED.format(names=names, args=args, module=module)
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=45, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("package", ["click", "rich"])
def test_without_its_packages_it_says_what_to_install(tmp_path, package):
    done = without([package], ["info", "x"], tmp_path)
    assert done.returncode == 1
    assert f"'{package}'" in done.stderr
    assert "pip install 'aioblock[cli]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_library_and_the_other_programs_do_without_them(tmp_path):
    packages = ["click", "rich", "matplotlib"]
    made = without(packages, ["create", "-f", "qcow2", "a.qcow2", "1M"], tmp_path, "aioblock.tools.img")
    assert made.returncode == 0, made.stderr
    read = without(packages, ["-c", "read 0 4k", "a.qcow2"], tmp_path, "aioblock.tools.io")
    assert read.returncode == 0, read.stderr


@pytest.mark.slow
def test_without_matplotlib_only_plot_is_missing(chain):
    done = without(["matplotlib"], ["map", "top.qcow2"], chain.folder)
    assert done.returncode == 0, done.stderr
    done = without(["matplotlib"], ["map", "top.qcow2", "--plot", "a.svg"], chain.folder)
    assert done.returncode == 1
    assert "pip install 'aioblock[plot]'" in done.stderr
    assert not os.path.exists("a.svg")


@pytest.mark.slow
def test_a_reader_that_goes_away_ends_it_silently(chain):
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "aioblock", "info", "top.qcow2"],
            cwd=chain.folder,
            stdout=write,
            stderr=subprocess.PIPE,
            timeout=45,
            check=False,
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


def test_names_cannot_talk_to_the_terminal(program):
    """An image may hold any name: what it would do to a terminal is shown, not done."""
    program.ok("create", "a.qcow2", "1M")
    program.ok("snapshot", "create", "a.qcow2", "bad\x1b[2Jname\x07")
    for result in (program.ok("info", "a.qcow2"), program.ok("snapshot", "list", "a.qcow2", "--color")):
        assert "bad\\x1b[2Jname\\x07" in result.out
        assert "\x1b[2J" not in result.out and "\x07" not in result.out


def test_quiet_says_nothing(chain):
    for args in (("info", "top.qcow2"), ("convert", "top.qcow2", "a.raw"), ("check", "top.qcow2")):
        result = chain.ok(*args, "--quiet")
        assert (result.out, result.err) == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict"])
def test_a_name_that_is_no_text_stops_nothing(program, encoding):
    name = os.fsdecode(b"a\xff$x$\xc3\xa4.qcow2")
    assert program.process("create", name, "1M", env={"PYTHONIOENCODING": encoding}).status == 0
    for args in (
        ("info", name),
        ("map", name),
        ("map", name, "--plot", "a.svg"),
        ("check", name),
        ("info", "--json", name),
    ):
        result = program.process(*args, env={"PYTHONIOENCODING": encoding})
        assert (result.status, result.err) == (0, ""), args
    assert os.path.exists(name) and os.path.getsize("a.svg")
