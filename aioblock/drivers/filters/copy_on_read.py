"""`copy-on-read`: what is read from a backing file is written into the image on the way."""

from collections.abc import Awaitable
from typing import TYPE_CHECKING, ClassVar, Self

from aioblock.base.errors import NotSupported, PermissionConflict
from aioblock.base.flags import REQ_COPY_ON_READ
from aioblock.core.filter import FilterDriver
from aioblock.core.images import Role

if TYPE_CHECKING:
    from aioblock.core.context import OpenContext

__all__ = ["CopyOnReadDriver"]


class CopyOnReadDriver(FilterDriver):
    """Asks its child to copy on read, and passes all else through."""

    name: ClassVar[str] = "copy-on-read"

    def __repr__(self) -> str:
        return "<CopyOnReadDriver>"

    @classmethod
    async def open(cls, context: "OpenContext") -> Self:
        """Option: `file`, the image, which must be writable. `bottom`, which would end the copying early, is not built.

        Raises: PermissionConflict; NotSupported.
        """
        if context.options.take("bottom") is not None:
            raise NotSupported("copy-on-read: the option 'bottom' is not supported")
        image = await context.open_child(Role.FILE)
        if image.node.read_only:
            raise PermissionConflict("Block node is read-only", node=image.node.name, filename=image.node.filename)
        return cls(image)

    def preadv(self, offset: int, buffer: memoryview, flags: int) -> Awaitable[None]:
        """Read, and let the child keep what came from below it."""
        return self.file.readinto(offset, buffer, flags | REQ_COPY_ON_READ)
