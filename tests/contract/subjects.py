"""The drivers that the contract suite examines: how to make storage for each, and open the driver over it.

A new driver gets a class here. The suite opens it more than once over the same storage.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from aioblock.core.driver import BlockDriver
from aioblock.core.images import Role
from aioblock.drivers.filters.copy_on_read import CopyOnReadDriver
from aioblock.drivers.formats.qcow2 import Qcow2Driver
from aioblock.drivers.formats.raw import RawDriver
from aioblock.drivers.protocols.memory import MemoryDisk, MemoryDriver
from aioblock.drivers.protocols.null import NullDriver
from aioblock.drivers.protocols.posix.file import FileDriver
from aioblock.drivers.protocols.posix.host_device import HostDeviceDriver
from aioblock.graph.opening import open_root
from aioblock.graph.permissions import root_permissions
from aioblock.graph.settings import OpenSettings
from tests.kit.fake_context import open_driver
from tests.kit.loop_device import loop_device
from tests.kit.memory_io import MemoryIO

__all__ = ["SIZE", "SUBJECTS", "Subject"]

SIZE = 1 << 20


class Subject:
    """One driver under examination, and its storage."""

    driver: type[BlockDriver]
    keeps = True
    """What was written is read back."""

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

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.path = folder / "disk"
        with self.path.open("wb") as file:
            file.truncate(SIZE)

    async def open(self, *, read_only: bool = False) -> BlockDriver:
        return await open_driver(self.driver, {"filename": str(self.path)}, read_only=read_only, direct=self.direct)

    def storage(self) -> bytes | None:
        return self.path.read_bytes()


class FileDirect(File):
    direct = True


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


class CopyOnRead(OverMemory):
    driver = CopyOnReadDriver


class Qcow2(Subject):
    driver = Qcow2Driver
    options: dict[str, Any] = {}

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.disk = MemoryDisk()

    async def open(self, *, read_only: bool = False) -> BlockDriver:
        file = await open_root(
            {"driver": "memory", "disk": self.disk}, OpenSettings(writable=True), *root_permissions(writable=True)
        )
        if not file.length:
            await Qcow2Driver.create(file, {"size": SIZE} | self.options)
        return await open_driver(self.driver, {}, children={Role.FILE: file}, read_only=read_only)

    def storage(self) -> bytes | None:
        return self.disk.content()


class Qcow2Small(Qcow2):
    options = {"cluster_size": 512, "refcount_bits": 1}


class Qcow2Old(Qcow2):
    options = {"compat": "0.10"}


class Qcow2Extended(Qcow2):
    options = {"cluster_size": 16384, "extended_l2": True}


SUBJECTS: dict[str, type[Subject]] = {
    "file": File,
    "file-direct": FileDirect,
    "host_device": HostDevice,
    "memory": Memory,
    "null-co": Null,
    "raw": Raw,
    "raw-probed": RawProbed,
    "raw-range": RawRange,
    "raw-tail": RawTail,
    "copy-on-read": CopyOnRead,
    "qcow2": Qcow2,
    "qcow2-512": Qcow2Small,
    "qcow2-v2": Qcow2Old,
    "qcow2-extended-l2": Qcow2Extended,
}
