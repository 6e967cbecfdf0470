"""`blkverify`: two children get the same requests, and must answer the same: `raw`, which is trusted, and `test`."""

import errno
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, ClassVar, Self

from aioblock.base.errors import NotSupported, OptionError, VerifyError
from aioblock.core.filter import FilterDriver
from aioblock.core.images import Prealloc, Role

if TYPE_CHECKING:
    from aioblock.core.context import OpenContext
    from aioblock.core.io import BlockIO

__all__ = ["BlkverifyDriver"]


class BlkverifyDriver(FilterDriver):
    """Reads from both and compares; writes to both. A difference is a VerifyError."""

    name: ClassVar[str] = "blkverify"
    name_prefix: ClassVar[str] = "blkverify:"
    supported_write_flags: int = 0
    supported_zero_flags: int = 0

    def __init__(self, raw: "BlockIO", test: "BlockIO") -> None:
        super().__init__(raw)
        self._test = test

    def __repr__(self) -> str:
        return f"<BlkverifyDriver raw={self.file.node.name} test={self._test.node.name}>"

    @classmethod
    def parse_filename(cls, filename: str) -> dict[str, Any]:
        """`blkverify:RAW:IMAGE`. Another name is none of ours."""
        if not filename.startswith(cls.name_prefix):
            return {}
        raw, colon, image = filename.removeprefix(cls.name_prefix).partition(":")
        if not colon:
            raise OptionError("blkverify requires raw copy and original image path", option="filename")
        return {"x-raw": raw, "x-image": image}

    @classmethod
    async def open(cls, context: "OpenContext") -> Self:
        """Options: `raw` and `test`, the children."""
        options = context.options
        plain = "raw" not in options and "test" not in options
        raw = await context.open_child(Role.RAW, options.take_str("x-raw", None))
        test = await context.open_child(Role.TEST, options.take_str("x-image", None))
        driver = cls(raw, test)
        if plain and raw.node.exact_filename and test.node.exact_filename:
            driver.exact_filename = f"{cls.name_prefix}{raw.node.exact_filename}:{test.node.exact_filename}"
        return driver

    async def getlength(self) -> int:
        """As what is tested."""
        return self._test.length

    def has_zero_init(self) -> bool:
        """Only where both do."""
        return all(child.node.driver.has_zero_init() for child in (self.file, self._test))

    async def preadv(self, offset: int, buffer: memoryview, flags: int) -> None:
        """Read from both. Raises: VerifyError where they differ."""
        expected = memoryview(bytearray(len(buffer)))
        raw = await _outcome(self.file.readinto(offset, expected))
        self._agree("read", offset, len(buffer), raw, await _outcome(self._test.readinto(offset, buffer)))
        if expected != buffer:
            first = next(at for at, (a, b) in enumerate(zip(expected, buffer, strict=True)) if a != b)
            raise _difference("read", offset, len(buffer), f"contents mismatch at offset {offset + first}")

    async def pwritev(self, offset: int, data: memoryview, flags: int) -> None:
        """Write to both."""
        raw = await _outcome(self.file.pwrite(offset, data))
        self._agree("write", offset, len(data), raw, await _outcome(self._test.pwrite(offset, data)))

    def _agree(self, verb: str, offset: int, nbytes: int, raw: OSError | None, test: OSError | None) -> None:
        """Both must agree in whether they failed, and why. Raises: that error; VerifyError."""
        codes = [-(error.errno or errno.EIO) if error is not None else 0 for error in (test, raw)]
        if codes[0] != codes[1]:
            raise _difference(verb, offset, nbytes, f"return value mismatch {codes[0]} != {codes[1]}")
        if test is not None:
            raise test

    async def pwrite_zeroes(self, offset: int, nbytes: int, flags: int) -> None:
        """Zeroes are written as data, to compare the same way in both."""
        raise NotSupported

    async def pdiscard(self, offset: int, nbytes: int) -> None:
        """What is discarded may read as anything: the two would differ."""
        raise NotSupported

    async def pwritev_compressed(self, offset: int, data: memoryview) -> None:
        """Only one of the two could do that."""
        raise NotSupported

    async def truncate(self, length: int, *, exact: bool, prealloc: Prealloc, flags: int) -> None:
        """The length is fixed."""
        raise NotSupported("Image format driver does not support resize")


async def _outcome(request: Awaitable[None]) -> OSError | None:
    try:
        await request
    except OSError as error:
        return error
    return None


def _difference(verb: str, offset: int, nbytes: int, what: str) -> VerifyError:
    return VerifyError(errno.EIO, f"blkverify: {verb} offset={offset} bytes={nbytes} {what}")
