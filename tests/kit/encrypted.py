"""Encrypted images for tests, made once for each set of options: a volume takes a quarter of a second to make."""

from pathlib import Path
from typing import Any

from aioblock.core.secrets import Secret
from aioblock.drivers.formats.luks import LuksDriver
from aioblock.drivers.formats.qcow2 import Qcow2Driver
from tests.kit import oracle
from tests.kit.memory_io import MemoryIO

__all__ = ["OBJECTS", "PASSPHRASE", "luks_image", "qcow2_image", "qemu_create", "secret_option"]

PASSPHRASE = b"correct horse"
OBJECTS = {"sec0": Secret(PASSPHRASE), "other": Secret(b"battery staple"), "third": Secret(b"third")}
"""The named objects of the tests: sec0 opens the images."""


def secret_option(id: str = "sec0") -> list[str]:
    """The arguments of QEMU's programs, and ours, that define one of them."""
    return ["--object", f"secret,id={id},data={OBJECTS[id].data.decode()}"]


def qemu_create(path: Path, form: str, options: str, size: str) -> None:
    """An image made by qemu-img."""
    done = oracle.qemu_img("create", "-q", *secret_option(), "-f", form, "-o", options, path, size, check=False)
    assert (done.returncode, done.stderr) == (0, "")


_made: dict[tuple[Any, ...], bytes] = {}


async def luks_image(size: int = 1 << 20, **options: Any) -> bytes:
    """A new `luks` image; option names with underscores."""
    return await _image(LuksDriver, {"size": size, "key-secret": OBJECTS["sec0"], "iter-time": 1} | _dashed(options))


async def qcow2_image(size: int = 1 << 20, form: str = "luks", **options: Any) -> bytes:
    """A new encrypted qcow2 image; those of its options that are about encryption begin with `encrypt_`."""
    given: dict[str, Any] = {"size": size, "encrypt.format": form, "encrypt.key-secret": OBJECTS["sec0"]}
    if form == "luks":
        given["encrypt.iter-time"] = 1
    for name, value in options.items():
        known = "encrypt." + name[8:].replace("_", "-") if name.startswith("encrypt_") else name
        given[known] = value
    return await _image(Qcow2Driver, given)


def _dashed(options: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("_", "-"): value for name, value in options.items()}


async def _image(driver: Any, options: dict[str, Any]) -> bytes:
    key = (driver.name, *sorted((name, str(value)) for name, value in options.items()))
    if key not in _made:
        file = MemoryIO()
        await driver.create(file, options)
        _made[key] = bytes(file.data)
    return _made[key]
