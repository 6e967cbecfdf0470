"""The prompt, from whatever standard input is, and the name that the program was called by."""

import os
import signal
import subprocess

import pytest

pytestmark = pytest.mark.slow  # each test starts a process


@pytest.fixture
def image(home):
    path = home / "x.raw"
    path.write_bytes(bytes(1 << 20))
    return str(path)


def ask(process, text):
    out, err = process.communicate(text, timeout=30)
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize("name", ["qemu-io", "aioblock-io"])
def test_the_prompt_is_the_name_of_the_program(program, image, name):
    process = program("-f", "raw", image, name=name)
    assert ask(process, b"length\nfoo\n") == (1, f"{name}> 1 MiB\n{name}> {name}> ", 'command "foo" not found\n')


@pytest.mark.parametrize("name", ["qemu-io", "aioblock-io"])
def test_messages_begin_with_the_name_of_the_program(program, image, name):
    process = program("-f", "raw", "-r", "-c", "write 0 1", image, name=name)
    assert ask(process, b"") == (1, "", f"{name}: Block node is read-only\n")


def test_commands_from_a_file(program, image, home):
    (home / "commands").write_text("length\nread -q 0 1\nquit\nlength\n")
    with open(home / "commands") as commands:
        process = program("-f", "raw", image, stdin=commands.fileno())
        assert ask(process, None) == (0, "qemu-io> 1 MiB\nqemu-io> qemu-io> ", "")


def test_no_commands_at_all(program, image):
    process = program("-f", "raw", image, stdin=subprocess.DEVNULL)
    assert ask(process, None) == (0, "qemu-io> ", "")


def test_from_a_terminal(program, image):
    master, slave = os.openpty()
    try:
        process = program("-f", "raw", image, stdin=slave)
        os.write(master, b"length\n")
        assert process.stdout.readline() == b"qemu-io> 1 MiB\n"
        os.write(master, b"\x04")  # end of file
        assert ask(process, None) == (0, "qemu-io> ", "")
    finally:
        os.close(master)
        os.close(slave)


def test_with_commands_given_it_does_not_ask(program, image):
    process = program("-f", "raw", "-c", "length", image)
    assert ask(process, b"foo\n") == (0, "1 MiB\n", "")


def test_what_became_of_a_request_is_shown_while_the_prompt_waits(program, image):
    process = program("-f", "raw", image)
    process.stdin.write(b"aio_read 0 512\n")
    seen = b""
    while b"ops/sec)\n" not in seen or seen.count(b"qemu-io> ") < 2:  # the program is told nothing more before that
        part = process.stdout.read(4096)
        assert part, seen
        seen += part
    assert b"read 512/512 bytes at offset 0\n512 bytes, 1 ops; " in seen
    assert ask(process, b"quit\n") == (0, "", "")


def test_ctrl_c_ends_it(program, image):
    process = program("-f", "raw", image)
    process.stdin.write(b"length\n")
    assert process.stdout.readline() == b"qemu-io> 1 MiB\n"
    process.send_signal(signal.SIGINT)
    process.wait(timeout=30)
    assert process.returncode == 130
    assert process.stderr.read() == b""


@pytest.mark.parametrize(("number", "status"), [(15, -15), (9, -9), (0, 0)])
def test_sigraise(program, image, number, status):
    process = program("-f", "raw", "-c", "length", "-c", f"sigraise {number}", image)
    assert ask(process, b"") == (status, "1 MiB\n", "")


def test_abort_closes_nothing(program, image):
    process = program("-f", "raw", "-c", "length", "-c", "abort", image)
    status, out, _ = ask(process, b"")
    assert (status, out) == (-6, "")
