"""Guest data of an image over a filter for tests (`core.debugger`), which is told of each request before."""

from collections.abc import Awaitable, Callable

from aioblock.drivers.formats.qcow2.data import Data

__all__ = ["WatchedData"]


class WatchedData(Data):
    """Guest data of any kind, of whose requests somebody is told before: none goes past it."""

    plain = False

    def __init__(self, data: Data, event: Callable[[str], Awaitable[None]]) -> None:
        super().__init__(data.file)
        self._data = data
        self._event = event

    async def readinto(self, host: int, guest: int, buffer: memoryview) -> None:
        """Tell, then read."""
        await self._event("read_aio")
        await self._data.readinto(host, guest, buffer)

    async def pwrite(self, host: int, guest: int, data: memoryview) -> None:
        """Tell, then write."""
        await self._event("write_aio")
        await self._data.pwrite(host, guest, data)

    async def pwrite_zeroes(self, host: int, guest: int, nbytes: int) -> None:
        """Tell, then zero."""
        await self._event("write_aio")
        await self._data.pwrite_zeroes(host, guest, nbytes)
