"""`--object` of the program: encrypted images read and written by us and by QEMU's program."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit import oracle
from tests.kit.encrypted import luks_image, qcow2_image

from .conftest import Done, without_times

pytestmark = pytest.mark.oracle

SECRET = ("--object", "secret,id=sec0,data=correct horse")
IMAGES = ["driver=luks,key-secret=sec0", "driver=qcow2,encrypt.key-secret=sec0"]


@pytest.fixture
async def folder(home: Path) -> Path:
    (home / "luks").write_bytes(await luks_image())
    (home / "qcow2").write_bytes(await qcow2_image())
    return home


@pytest.mark.parametrize("image", IMAGES)
def test_both_write_and_both_read(ours: Callable[..., Done], folder: Path, image: str) -> None:
    name = image.partition(",")[0].removeprefix("driver=")
    words = [*SECRET, "--image-opts", f"{image},file.filename={name}"]
    done = ours(*words, "-c", "write -P 5 1k 300k", "-c", "write -P 6 600k 77")
    assert (done.status, done.err) == (0, "")
    theirs = oracle.run(
        "qemu-io", *words, "-c", "read -P 5 1k 300k", "-c", "write -P 7 100k 1k", "-c", "read -P 6 600k 77"
    )
    assert "verification failed" not in theirs.stdout + theirs.stderr
    again = ours(*words, "-c", "read -P 5 1k 99k", "-c", "read -P 7 100k 1k", "-c", "read -P 6 600k 77")
    assert (again.status, again.err) == (0, "")
    assert "verification failed" not in again.out


@pytest.mark.parametrize(
    "words",
    [
        ("--object", "secret,id=sec0", "luks"),
        ("--object", "foo,id=sec0", "luks"),
        (*SECRET, *SECRET, "luks"),
        ("luks",),
        ("qcow2",),
        ("--image-opts", "driver=luks,key-secret=sec0,file.filename=luks"),
        ("--object", "secret,id=sec0,data=wrong", "--image-opts", "driver=luks,key-secret=sec0,file.filename=luks"),
        (*SECRET, "--image-opts", "driver=qcow2,encrypt.key-secret=sec0,encrypt.format=aes,file.filename=qcow2"),
    ],
    ids=" ".join,
)
def test_the_same_words(ours: Callable[..., Done], folder: Path, words: tuple[str, ...]) -> None:
    theirs = oracle.run("qemu-io", *words, "-c", "read 0 512", check=False)
    done = ours(*words, "-c", "read 0 512")
    assert (done.status, done.err) == (theirs.returncode, theirs.stderr)
    assert without_times(done.out) == without_times(theirs.stdout)
