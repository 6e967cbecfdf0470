"""The drivers that the contract suite examines: how to make storage for each, and open the driver over it.

A new driver gets a class here. The suite opens it more than once over the same storage.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from aioblock.core.driver import BlockDriver
from aioblock.core.images import Role
from aioblock.core.objects import NamedObject
from aioblock.core.throttling import Limits, ThrottleGroup
from aioblock.drivers.filters.blkdebug import BlkdebugDriver
from aioblock.drivers.filters.blklogwrites import BlklogwritesDriver
from aioblock.drivers.filters.blkverify import BlkverifyDriver
from aioblock.drivers.filters.copy_on_read import CopyOnReadDriver
from aioblock.drivers.filters.preallocate import PreallocateDriver
from aioblock.drivers.filters.quorum import QuorumDriver
from aioblock.drivers.filters.throttle import ThrottleDriver
from aioblock.drivers.formats.luks import LuksDriver
from aioblock.drivers.formats.qcow2 import Qcow2Driver
from aioblock.drivers.formats.raw import RawDriver
from aioblock.drivers.protocols.memory import MemoryDisk, MemoryDriver
from aioblock.drivers.protocols.nbd import NbdDriver
from aioblock.drivers.protocols.null import NullDriver
from aioblock.drivers.protocols.posix.file import FileDriver
from aioblock.drivers.protocols.posix.host_device import HostDeviceDriver
from aioblock.graph.opening import open_root
from aioblock.graph.permissions import root_permissions
from aioblock.graph.settings import OpenSettings
from aioblock.nbd.constants import FLAG_HAS_FLAGS, Mode
from tests.kit.encrypted import OBJECTS, luks_image, qcow2_image
from tests.kit.fake_context import open_driver
from tests.kit.loop_device import loop_device
from tests.kit.memory_io import MemoryIO
from tests.kit.nbd_server import ALL_FLAGS, server_thread

__all__ = ["SIZE", "SUBJECTS", "Subject"]

SIZE = 1 << 20


class Subject:
    """One driver under examination, and its storage."""

    driver: type[BlockDriver]
    keeps = True
    """What was written is read back."""
    grows_with_zeroes = True
    """What a truncate adds reads as zeroes."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        """Make storage of SIZE bytes, empty, in `folder`; what must be undone goes onto `stack`."""

    async def open(self, *, read_only: bool = False) -> BlockDriver:
        """Open the driver over the storage."""
        raise NotImplementedError

    def storage(self) -> bytes | None:
        """The bytes in the storage, to see that nothing changed; None where nobody can tell."""
        return None


class File(Subject):
    driver: type[BlockDriver] = FileDriver
    direct = False
    aio: str | None = None

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.path = folder / "disk"
        with self.path.open("wb") as file:
            file.truncate(SIZE)

    async def open(self, *, read_only: bool = False) -> BlockDriver:
        options = {"filename": str(self.path)}
        return await open_driver(self.driver, options, read_only=read_only, direct=self.direct, aio=self.aio)

    def storage(self) -> bytes | None:
        return self.path.read_bytes()


class FileDirect(File):
    direct = True


class FileDirectThreads(FileDirect):
    aio = "threads"


class HostDevice(File):
    driver = HostDeviceDriver

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        super().__init__(folder, stack)
        self.path = Path(stack.enter_context(loop_device(self.path)))


class Memory(Subject):
    driver = MemoryDriver

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.disk = MemoryDisk(SIZE)

    async def open(self, *, read_only: bool = False) -> BlockDriver:
        return await open_driver(MemoryDriver, {"disk": self.disk}, read_only=read_only)

    def storage(self) -> bytes | None:
        return self.disk.content()


class Null(Subject):
    driver = NullDriver
    keeps = False

    async def open(self, *, read_only: bool = False) -> BlockDriver:
        return await open_driver(NullDriver, {"size": SIZE, "read-zeroes": True}, read_only=read_only)


class Nbd(Subject):
    driver = NbdDriver
    mode = Mode.EXTENDED
    options: dict[str, Any] = {}
    flags = ALL_FLAGS
    min_block = 1

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.disk = MemoryDisk(SIZE)
        self.path = str(folder / "socket")
        server = server_thread(self.disk, self.path, mode=self.mode, flags=self.flags, min_block=self.min_block)
        stack.enter_context(server)

    async def open(self, *, read_only: bool = False) -> BlockDriver:
        return await open_driver(NbdDriver, {"path": self.path} | self.options, read_only=read_only)

    def storage(self) -> bytes | None:
        return self.disk.content()


class NbdSimple(Nbd):
    mode = Mode.SIMPLE
    flags = FLAG_HAS_FLAGS
    min_block = 512


class NbdConnections(Nbd):
    mode = Mode.STRUCTURED
    options = {"connections": 4, "reconnect-delay": 5}


class OverMemory(Subject):
    """A driver with one child."""

    options: dict[str, Any] = {}
    child_size = SIZE
    probed = False

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.child = MemoryIO(bytes(self.child_size))
        self.child.node.set_driver(MemoryDriver(MemoryDisk()), 0)

    async def open(self, *, read_only: bool = False) -> BlockDriver:
        return await open_driver(
            self.driver, self.options, children={Role.FILE: self.child}, read_only=read_only, probed=self.probed
        )

    def storage(self) -> bytes | None:
        return bytes(self.child.data)


class Raw(OverMemory):
    driver = RawDriver


class RawProbed(Raw):
    probed = True


class RawRange(Raw):
    options = {"offset": 3 << 9, "size": SIZE}
    child_size = SIZE + (5 << 9)


class RawTail(Raw):
    options = {"offset": 1000}
    child_size = SIZE + 1000


class Filter(OverMemory):
    """A filter, over a child of any role."""

    role = Role.FILE

    async def open(self, *, read_only: bool = False) -> BlockDriver:
        children = {self.role: self.child} | self.others()
        return await open_driver(
            self.driver, self.options, children=children, objects=self.objects(), read_only=read_only
        )

    def others(self) -> dict[Role, MemoryIO]:
        """Its other children."""
        return {}

    def objects(self) -> dict[str, NamedObject]:
        """What its options refer to."""
        return {}


class CopyOnRead(Filter):
    driver = CopyOnReadDriver


class Blkdebug(Filter):
    driver = BlkdebugDriver
    role = Role.IMAGE


class BlkdebugLimits(Blkdebug):
    options = {"align": 4096, "max-transfer": 16384, "opt-write-zero": 12288, "opt-discard": 8192, "max-discard": 16384}


class Blklogwrites(Filter):
    driver = BlklogwritesDriver

    def others(self) -> dict[Role, MemoryIO]:
        return {Role.LOG: MemoryIO()}


class Blkverify(Filter):
    driver = BlkverifyDriver
    role = Role.RAW

    def others(self) -> dict[Role, MemoryIO]:
        test = MemoryIO(bytes(self.child.data))
        test.node.set_driver(MemoryDriver(MemoryDisk()), 0)
        return {Role.TEST: test}


class Quorum(Filter):
    driver = QuorumDriver
    options = {"vote-threshold": 2, "children": [{}, {}, {}]}
    rewrite = False

    async def open(self, *, read_only: bool = False) -> BlockDriver:
        options = self.options | ({"rewrite-corrupted": True} if self.rewrite and not read_only else {})
        children = [self.child, *self._copies()]
        named = {f"{Role.CHILDREN}.{number}": child for number, child in enumerate(children)}
        return await open_driver(self.driver, options, children=named, read_only=read_only)

    def _copies(self) -> list[MemoryIO]:
        copies = [MemoryIO(bytes(self.child.data)) for _ in range(2)]
        for copy in copies:
            copy.node.set_driver(MemoryDriver(MemoryDisk()), 0)
        return copies


class QuorumRewrite(Quorum):
    rewrite = True


class Throttle(Filter):
    driver = ThrottleDriver
    options = {"throttle-group": "g"}

    def objects(self) -> dict[str, NamedObject]:
        return {"g": ThrottleGroup(Limits({"iops-total": 10**9}))}


class Preallocate(Filter):
    driver = PreallocateDriver


class Luks(OverMemory):
    driver = LuksDriver
    options = {"key-secret": "sec0"}
    grows_with_zeroes = False

    async def open(self, *, read_only: bool = False) -> BlockDriver:
        if not any(self.child.data):
            self.child.data[:] = await luks_image(SIZE)
            await self._fill(await self._opened(read_only=False))
        return await self._opened(read_only=read_only)

    async def _opened(self, *, read_only: bool) -> BlockDriver:
        return await open_driver(
            self.driver, self.options, children={Role.FILE: self.child}, read_only=read_only, objects=OBJECTS
        )

    @staticmethod
    async def _fill(new: BlockDriver) -> None:
        """With zeroes: a new image reads as noise."""
        await new.pwritev(0, memoryview(bytes(SIZE)), 0)
        await new.close()


class Qcow2(Subject):
    driver = Qcow2Driver
    options: dict[str, Any] = {}
    opening: dict[str, Any] = {}

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.disk = MemoryDisk()

    async def open(self, *, read_only: bool = False) -> BlockDriver:
        file = await open_root(
            {"driver": "memory", "disk": self.disk}, OpenSettings(writable=True), *root_permissions(writable=True)
        )
        if not file.length:
            await Qcow2Driver.create(file, {"size": SIZE} | self.options)
        return await open_driver(
            self.driver, self.opening, children={Role.FILE: file}, read_only=read_only, objects=OBJECTS
        )

    def storage(self) -> bytes | None:
        return self.disk.content()


class Qcow2Luks(Qcow2):
    opening = {"encrypt": {"key-secret": "sec0"}}
    form = "luks"

    async def open(self, *, read_only: bool = False) -> BlockDriver:
        if not self.disk.content():
            self.disk = MemoryDisk(content=await qcow2_image(SIZE, self.form))
        return await super().open(read_only=read_only)


class Qcow2Aes(Qcow2Luks):
    form = "aes"


class Qcow2Small(Qcow2):
    options = {"cluster_size": 512, "refcount_bits": 1}


class Qcow2Old(Qcow2):
    options = {"compat": "0.10"}


class Qcow2Extended(Qcow2):
    options = {"cluster_size": 16384, "extended_l2": True}


SUBJECTS: dict[str, type[Subject]] = {
    "file": File,
    "file-direct": FileDirect,
    "file-direct-threads": FileDirectThreads,
    "host_device": HostDevice,
    "memory": Memory,
    "nbd": Nbd,
    "nbd-simple": NbdSimple,
    "nbd-connections": NbdConnections,
    "null-co": Null,
    "raw": Raw,
    "raw-probed": RawProbed,
    "raw-range": RawRange,
    "raw-tail": RawTail,
    "copy-on-read": CopyOnRead,
    "blkdebug": Blkdebug,
    "blkdebug-limits": BlkdebugLimits,
    "blklogwrites": Blklogwrites,
    "blkverify": Blkverify,
    "quorum": Quorum,
    "quorum-rewrite": QuorumRewrite,
    "throttle": Throttle,
    "preallocate": Preallocate,
    "luks": Luks,
    "qcow2": Qcow2,
    "qcow2-512": Qcow2Small,
    "qcow2-luks": Qcow2Luks,
    "qcow2-aes": Qcow2Aes,
    "qcow2-v2": Qcow2Old,
    "qcow2-extended-l2": Qcow2Extended,
}
