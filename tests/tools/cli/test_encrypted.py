"""Encrypted images: making them, and opening them with the passphrase in a file, or on stdin."""

import subprocess
import sys

import pytest

from tests.tools.cli.conftest import MiB

pytest.importorskip("cryptography")
pytestmark = pytest.mark.slow

#: The work of guessing a passphrase costs ten milliseconds in place of two seconds.
QUICK = ("-o", "encrypt.iter-time=10")


@pytest.fixture
def encrypted(program):
    (program.folder / "key").write_bytes(b"secret")
    (program.folder / "wrong").write_bytes(b"secret\n")
    program.ok("create", "a.qcow2", "1M", "--encrypt-with", "key", *QUICK)
    program.ok("io", "write", "a.qcow2", "0", "--text", "hello", "--key-file", "key")
    return program


def test_what_is_written_is_read_with_the_key_alone(encrypted):
    assert bytes.fromhex(encrypted.json("io", "read", "a.qcow2", "0", "5", "--key-file", "key")["data"]) == b"hello"
    assert b"hello" not in (encrypted.folder / "a.qcow2").read_bytes()
    for args, words in ((("--key-file", "wrong"), "to the byte"), ((), "--key-file FILE")):
        result = encrypted("io", "read", "a.qcow2", "0", "5", *args)
        assert result.status == 1 and "a.qcow2: " in result.err and words in result.err
    assert encrypted.json("info", "a.qcow2")["layers"][0]["encrypted"] is True


def test_the_key_may_come_from_stdin(encrypted):
    done = subprocess.run(
        [sys.executable, "-m", "aioblock", "io", "read", "a.qcow2", "0", "5", "--key-file", "-"],
        cwd=encrypted.folder,
        input=b"secret\n",
        capture_output=True,
        timeout=45,
        check=False,
    )
    assert done.returncode == 0 and b"|hello|" in done.stdout


def test_convert_and_compare_with_a_key_for_each(encrypted):
    (encrypted.folder / "other").write_bytes(b"another")
    encrypted.ok("convert", "a.qcow2", "b.luks", "--key-file", "key", "--encrypt-with", "other", "-o", "iter-time=10")
    encrypted.ok("compare", "a.qcow2", "b.luks", "--key-file", "key", "--second-key-file", "other")
    encrypted.ok("convert", "b.luks", "c.raw", "--key-file", "other")
    assert (encrypted.folder / "c.raw").read_bytes() == b"hello" + bytes(MiB - 5)
    result = encrypted("compare", "a.qcow2", "b.luks", "--key-file", "key", "--second-key-file", "key")
    assert result.status == 2 and "b.luks: Invalid password" in result.err


def test_a_map_names_the_file(encrypted):
    assert encrypted.json("map", "a.qcow2", "--key-file", "key")["layers"][0]["filename"] == "a.qcow2"


def test_what_is_not_encrypted_takes_no_key(encrypted):
    encrypted.ok("create", "b.qcow2", "1M")
    result = encrypted("map", "b.qcow2", "--key-file", "key")
    assert result.status == 1 and "is not encrypted" in result.err
    result = encrypted("create", "b.raw", "1M", "--encrypt-with", "key")
    assert result.status == 1 and "luks, qcow2" in result.err
    assert not (encrypted.folder / "b.raw").exists()


def test_a_key_file_that_is_not_there(encrypted):
    result = encrypted("map", "a.qcow2", "--key-file", "nosuch")
    assert result.status == 2 and "nosuch" in result.err
