"""`throttle`: requests wait until the limits of their group let them through."""

from typing import TYPE_CHECKING, ClassVar, Self

from aioblock.base.errors import OptionError
from aioblock.core.filter import FilterDriver
from aioblock.core.images import Role
from aioblock.core.throttling import ThrottleGroup, ThrottleMember

if TYPE_CHECKING:
    from aioblock.core.context import OpenContext
    from aioblock.core.io import BlockIO

__all__ = ["ThrottleDriver"]


class ThrottleDriver(FilterDriver):
    """Holds requests back. Discards and zeroes count as writes; flushes and status never wait.

    While the node is drained nothing waits: who drains would wait for it.
    """

    name: ClassVar[str] = "throttle"
    naming_options: ClassVar[frozenset[str]] = frozenset({"throttle-group"})

    def __init__(self, file: "BlockIO", group: ThrottleGroup) -> None:
        super().__init__(file)
        self._member = ThrottleMember(group)

    def __repr__(self) -> str:
        return f"<ThrottleDriver {self._member!r}>"

    @classmethod
    async def open(cls, context: "OpenContext") -> Self:
        """Options: `file`, and `throttle-group`, the id of such an object."""
        id = context.options.take_str("throttle-group", None)
        if not id:
            raise OptionError("Please specify a throttle group", option="throttle-group")
        group = context.objects.get(id)
        if not isinstance(group, ThrottleGroup):
            raise OptionError(f"Throttle group '{id}' does not exist", option="throttle-group")
        return cls(await context.open_child(Role.FILE), group)

    def let_go(self) -> None:
        """What waits goes on, and what comes does not wait."""
        self._member.unlimited += 1
        self._member.release()

    def hold_back(self) -> None:
        """The limits hold again."""
        self._member.unlimited -= 1

    async def preadv(self, offset: int, buffer: memoryview, flags: int) -> None:
        """Wait, then read."""
        await self._member.admit("read", len(buffer))
        await self.file.readinto(offset, buffer, flags)

    async def pwritev(self, offset: int, data: memoryview, flags: int) -> None:
        """Wait, then write."""
        await self._member.admit("write", len(data))
        await self.file.pwrite(offset, data, flags)

    async def pwritev_compressed(self, offset: int, data: memoryview) -> None:
        """Wait, then write."""
        await self._member.admit("write", len(data))
        await super().pwritev_compressed(offset, data)

    async def pwrite_zeroes(self, offset: int, nbytes: int, flags: int) -> None:
        """Wait, then zero."""
        await self._member.admit("write", nbytes)
        await self.file.pwrite_zeroes(offset, nbytes, flags)

    async def pdiscard(self, offset: int, nbytes: int) -> None:
        """Wait, then discard."""
        await self._member.admit("write", nbytes)
        await self.file.pdiscard(offset, nbytes)
