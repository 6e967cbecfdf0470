"""Encrypted images and `--object`: the same words and exit statuses as qemu-img, and images that each side opens."""

from pathlib import Path

import pytest

from aioblock.luks import kdf
from tests.kit.encrypted import luks_image, qcow2_image, qemu_create
from tests.tools.img.conftest import Sides

pytestmark = pytest.mark.oracle

SECRET = ("--object", "secret,id=sec0,data=correct horse")
WRONG = ("--object", "secret,id=sec0,data=wrong")
LUKS = "driver=luks,file.filename=a.luks"
NEW = "encrypt.format=luks,encrypt.key-secret=sec0"
QCOW2 = "driver=qcow2,file.filename=a.qcow2"


@pytest.fixture(autouse=True)
def _no_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kdf, "_MEASURED_SECONDS", 0.0)


@pytest.fixture
async def images(sides: Sides) -> Sides:
    """Both folders with a.luks, a.qcow2 (LUKS), aes.qcow2 and plain.qcow2."""
    sides.write("a.luks", await luks_image())
    sides.write("a.qcow2", await qcow2_image())
    sides.write("aes.qcow2", await qcow2_image(form="aes"))
    sides.prepare("qemu-img", "create", "-q", "-f", "qcow2", "plain.qcow2", "1M")
    return sides


@pytest.mark.parametrize(
    "definition",
    [
        "secret",
        "secret,id=s",
        "id=s",
        "foo,id=s",
        "secret,id=9,data=x",
        "secret,id=s,data=a,file=b",
        "secret,id=s,file=nowhere",
        "secret,id=s,data=a,foo=b",
        "secret,id=s,data",
        "secret,id=s,data=x",
        "secret,help",
        '{"qom-type": "secret", "id": "s", "data": "x"}',
    ],
)
@pytest.mark.parametrize("command", ["info", "check"])
def test_definitions(images: Sides, command: str, definition: str) -> None:
    theirs = images.run_theirs(command, "--object", definition, "plain.qcow2")
    ours = images.run_ours(command, "--object", definition, "plain.qcow2")
    assert (ours.status, ours.err) == (theirs.status, theirs.err)
    if definition == "secret,help":
        assert {line.strip() for line in ours.out.splitlines()} <= {line.strip() for line in theirs.out.splitlines()}


def test_an_id_is_used_once(images: Sides) -> None:
    images.same("check", *SECRET, *WRONG, "plain.qcow2")
    images.same("check", *SECRET, "plain.qcow2")  # and nothing is left of the run before


def _facts(text: str) -> list[str]:
    """Without what the storage takes: one side has holes where the other has not."""
    unlike = {"disk size", '"actual-size"'}
    return [line for line in text.splitlines() if line.strip().partition(":")[0] not in unlike]


@pytest.mark.parametrize("name", ["a.luks", "a.qcow2", "aes.qcow2"])
def test_info_needs_no_secret(images: Sides, name: str) -> None:
    for output in ("human", "json"):
        theirs = images.run_theirs("info", f"--output={output}", name)
        ours = images.run_ours("info", f"--output={output}", name)
        assert ours.status == theirs.status == 0
        assert _facts(ours.out) == _facts(theirs.out)


@pytest.mark.parametrize(
    "words",
    [
        ("map", "a.luks"),
        ("map", "a.qcow2"),
        ("map", "--image-opts", LUKS),
        ("map", *WRONG, "--image-opts", f"{LUKS},key-secret=sec0"),
        ("map", *WRONG, "--image-opts", f"{QCOW2},encrypt.key-secret=sec0"),
        ("map", *WRONG, "--image-opts", f"{QCOW2},encrypt.key-secret=other"),
        ("map", *SECRET, "--image-opts", f"{QCOW2},encrypt.key-secret=sec0,encrypt.format=aes"),
        ("compare", *WRONG, "--image-opts", f"{LUKS},key-secret=sec0", f"{LUKS},key-secret=sec0"),
        ("check", *SECRET, "--image-opts", f"{LUKS},key-secret=sec0"),
        ("convert", "-c", *SECRET, "-O", "qcow2", "-o", NEW, "plain.qcow2", "x"),
        ("create", "-f", "luks", "-o", "key-secret=sec1", "new", "1M"),
        ("create", "-f", "luks", "new", "1M"),
        ("create", "-f", "luks", *SECRET, "-o", "key-secret=sec0,cipher-alg=foo", "new", "1M"),
        ("create", "-f", "luks", *SECRET, "-o", "key-secret=sec0", "-b", "plain.qcow2", "-F", "qcow2", "new", "1M"),
        ("create", "-f", "qcow2", *SECRET, "-o", "encrypt.format=foo,encrypt.key-secret=sec0", "new", "1M"),
        ("create", "-f", "qcow2", *SECRET, "-o", "encryption=on,encrypt.key-secret=sec0", "new", "1M"),
        ("amend", *SECRET, "--image-opts", f"{LUKS},key-secret=sec0", "-o", "state=inactive,keyslot=0"),
        ("amend", *SECRET, "--image-opts", f"{LUKS},key-secret=sec0", "-o", "size=5M"),
        ("amend", *SECRET, "--image-opts", f"{QCOW2},encrypt.key-secret=sec0", "-o", "encrypt.state=inactive"),
        ("amend", *SECRET, "-o", "encrypt.state=active,encrypt.new-secret=sec0", "plain.qcow2"),
    ],
    ids=" ".join,
)
def test_the_same_words(images: Sides, words: tuple[str, ...]) -> None:
    images.same(*words)


def test_a_map_tells_no_offsets(images: Sides) -> None:
    for image in (f"{LUKS},key-secret=sec0", f"{QCOW2},encrypt.key-secret=sec0"):
        images.prepare("qemu-io", *SECRET, "--image-opts", image, "-c", "write -P 5 64k 200k")
        for output in ("json", "human"):
            images.same("map", *SECRET, f"--output={output}", "--image-opts", image)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "options", "opened"),
    [
        ("luks", "key-secret=sec0,iter-time=10", "driver=luks,key-secret=sec0"),
        ("qcow2", f"{NEW},encrypt.iter-time=10", "driver=qcow2,encrypt.key-secret=sec0"),
        ("qcow2", "encrypt.format=aes,encrypt.key-secret=sec0", "driver=qcow2,encrypt.key-secret=sec0"),
    ],
)
def test_convert_into_one_and_back(images: Sides, form: str, options: str, opened: str) -> None:
    images.prepare("qemu-io", "-f", "qcow2", "-c", "write -P 7 100k 333k", "-c", "write -P 9 700k 1k", "plain.qcow2")
    qemu_create(images.theirs / "new", form, options, "1M")
    target = f"{opened},file.filename=new"
    theirs = images.run_theirs("convert", "-n", *SECRET, "--target-image-opts", "plain.qcow2", target)
    ours = images.run_ours("convert", *SECRET, "-f", "qcow2", "-O", form, "-o", options, "plain.qcow2", "new")
    assert ours == theirs
    for folder in (images.theirs, images.ours):
        there = f"{opened},file.filename={folder}/new"
        plain = "driver=qcow2,file.filename=plain.qcow2"
        images.same("compare", *SECRET, "--image-opts", there, plain)
    back = ("convert", *SECRET, "--image-opts", target, "-O", "raw", "back.raw")
    images.same(*back)
    assert Path(images.ours / "back.raw").read_bytes() == Path(images.theirs / "back.raw").read_bytes()


@pytest.mark.slow
def test_key_slots(images: Sides) -> None:
    other = ("--object", "secret,id=sec1,data=other")
    for image, prefix in ((f"{LUKS},key-secret=sec0", ""), (f"{QCOW2},encrypt.key-secret=sec0", "encrypt.")):
        add = f"{prefix}state=active,{prefix}new-secret=sec1,{prefix}keyslot=4,{prefix}iter-time=10"
        assert images.run_ours("amend", *SECRET, *other, "--image-opts", image, "-o", add).status == 0
        erase = f"{prefix}state=inactive,{prefix}old-secret=sec0"
        assert images.run_ours("amend", *SECRET, *other, "--image-opts", image, "-o", erase).status == 0
        images.theirs, kept = images.ours, images.theirs  # both look at what ours became
        refused = images.same("map", *SECRET, "--image-opts", image)
        assert refused.status == 1
        images.same("map", *other, "--image-opts", image.replace("=sec0", "=sec1"))
        images.theirs = kept
