"""completion: the scripts are what the shells understand, and bash completes with one."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.tools.cli.test_application import COMMANDS

pytestmark = pytest.mark.slow

bash = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")


@bash
def test_the_script_for_bash_is_one(program):
    script = program.ok("completion", "bash").out
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, timeout=45, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert program.json("completion", "bash") == {"shell": "bash", "script": script}


@pytest.mark.parametrize(("shell", "words"), [("zsh", "#compdef aioblock"), ("fish", "complete --no-files --command")])
def test_the_scripts_for_other_shells(program, shell, words):
    script = program.ok("completion", shell).out
    assert words in script and "_AIOBLOCK_COMPLETE" in script
    if (path := shutil.which(shell)) is not None:
        done = subprocess.run([path, "-n"], input=script, capture_output=True, text=True, timeout=45, check=False)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def complete(program):
    """Complete a command line in bash, with the script; the words that it offers."""
    folder = program.folder
    (folder / "bin").mkdir()
    launcher = folder / "bin" / "aioblock"
    launcher.write_text(f'#!/bin/sh\nexec {sys.executable} -m aioblock "$@"\n')
    launcher.chmod(0o755)
    (folder / "script").write_text(program.ok("completion", "bash").out)

    def run(*words):
        line = " ".join(f"'{word}'" for word in words)
        code = (
            ". ./script\n"
            f"COMP_WORDS=({line})\n"
            f"COMP_CWORD={len(words) - 1}\n"
            "COMPREPLY=()\n"
            "_aioblock_completion aioblock\n"
            'printf "%s\\n" "${COMPREPLY[@]}"\n'
        )
        done = subprocess.run(
            ["bash", "--norc", "-c", code],
            cwd=folder,
            env=os.environ | {"PATH": f"{folder}/bin:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=45,
            check=False,
        )
        # Outside of a line that is typed, bash says that there is nothing to set the options of.
        assert [line for line in done.stderr.splitlines() if "compopt" not in line] == []
        return done.stdout.split()

    return run


@bash
def test_bash_completes_subcommands_options_and_values(complete):
    assert complete("aioblock", "") == COMMANDS
    assert complete("aioblock", "co") == [name for name in COMMANDS if name.startswith("co")]
    assert "--plot" in complete("aioblock", "map", "--p")
    assert complete("aioblock", "snapshot", "a") == ["apply"]
    assert complete("aioblock", "info", "--trust", "") == ["all", "directory", "none"]
    assert "qcow2" in complete("aioblock", "info", "--format", "q")


@bash
def test_bash_completes_images_as_files(complete, program):
    """The script leaves file names to bash: it offers the word itself, of the type file."""
    done = subprocess.run(
        [program.folder / "bin" / "aioblock"],
        env=os.environ | {"_AIOBLOCK_COMPLETE": "bash_complete", "COMP_WORDS": "aioblock info di", "COMP_CWORD": "2"},
        capture_output=True,
        text=True,
        timeout=45,
        check=False,
    )
    assert done.stdout.split() == ["file,di"]
