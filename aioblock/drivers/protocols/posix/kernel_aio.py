"""The kernel's own asynchronous reads and writes: io_setup(2), io_submit(2), io_getevents(2), io_destroy(2).

Every operation carries RWF_NOWAIT: where io_submit would wait (for blocks to be allocated, for pages of the file that
are in the cache, for a place in the device's queue) the operation comes back with EAGAIN at once.
"""

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any, Final, NamedTuple

__all__ = ["READ", "WRITE", "KernelAio"]

READ: Final = 0  # IOCB_CMD_PREAD
WRITE: Final = 1  # IOCB_CMD_PWRITE

# struct iocb, where the bytes of a number begin with the lowest: u64 aio_data; u32 aio_key, aio_rw_flags;
# u16 aio_lio_opcode; s16 aio_reqprio; u32 aio_fildes; u64 aio_buf, aio_nbytes; s64 aio_offset; u64 aio_reserved2;
# u32 aio_flags, aio_resfd.
_IOCB: Final = struct.Struct("=QIIHhIQQqQII")
_OPERATION_AT: Final = 16
_OPERATION: Final = struct.Struct("=HhIQQq")  # the part of it from aio_lio_opcode to aio_offset
_EVENT: Final = struct.Struct("=QQqq")  # struct io_event: u64 data, obj; s64 res, res2
_RWF_NOWAIT: Final = 0x08
_FLAG_RESFD: Final = 0x01

# io_setup, io_destroy, io_submit, io_getevents; the second row is that of asm-generic/unistd.h.
_NUMBERS: Final = {"x86_64": (206, 207, 209, 208)} | dict.fromkeys(("aarch64", "riscv64", "loongarch64"), (0, 1, 2, 4))


class _Calls(NamedTuple):
    setup: Any
    destroy: Any
    submit: Any
    getevents: Any


@cache
def _calls() -> _Calls | None:
    """The system calls as functions that release the interpreter's lock; None where their numbers are not known."""
    numbers = _NUMBERS.get(platform.machine()) if sys.platform == "linux" and sys.maxsize > 1 << 32 else None
    if numbers is None:
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    pointer = ctypes.c_void_p
    arguments: tuple[tuple[Any, ...], ...] = (
        (ctypes.c_uint, pointer),
        (ctypes.c_ulong,),
        (ctypes.c_ulong, ctypes.c_long, pointer),
        (ctypes.c_ulong, ctypes.c_long, ctypes.c_long, pointer, pointer),
    )
    functions = []
    for types in arguments:
        function = libc["syscall"]  # another object each time
        function.argtypes, function.restype = (ctypes.c_long, *types), ctypes.c_long
        functions.append(function)
    bound = [_bound(function, number) for function, number in zip(functions, numbers, strict=True)]
    return _Calls(*bound)


def _bound(function: Any, number: int) -> Any:
    def call(*arguments: Any) -> int:
        """What the call returns. Raises: OSError."""
        while (answer := int(function(number, *arguments))) < 0:
            if (code := ctypes.get_errno()) != errno.EINTR:
                raise OSError(code, os.strerror(code))
        return answer

    return call


class KernelAio:
    """Operations of one process that the kernel does meanwhile: `depth` at a time, each known by a number below that.

    Raises: OSError (ENOSYS where the kernel has none, EAGAIN past /proc/sys/fs/aio-max-nr, EPERM in some containers).
    """

    __slots__ = ("_blocks", "_calls", "_context", "_depth", "_events", "_first", "_pointers", "_view")

    def __init__(self, depth: int, notify: int) -> None:
        """`notify`: an eventfd, which becomes readable when operations are done."""
        calls = _calls()
        if calls is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        context = ctypes.c_ulong(0)
        calls.setup(depth, ctypes.byref(context))
        self._calls = calls
        self._context = context.value
        self._depth = depth
        self._blocks = ctypes.create_string_buffer(depth * _IOCB.size)
        self._first = ctypes.addressof(self._blocks)
        for number in range(depth):
            values = (number, 0, _RWF_NOWAIT, 0, 0, 0, 0, 0, 0, 0, _FLAG_RESFD, notify)
            _IOCB.pack_into(self._blocks, number * _IOCB.size, *values)
        self._pointers = (ctypes.c_uint64 * depth)()
        self._events = ctypes.create_string_buffer(depth * _EVENT.size)
        self._view = memoryview(self._events).cast("B")

    def __repr__(self) -> str:
        return f"KernelAio({self._context:#x}, depth={self._depth})"

    def prepare(self, number: int, opcode: int, fd: int, address: int, nbytes: int, offset: int) -> None:
        """Say what operation `number` is: READ or WRITE; the memory at `address` is the kernel's until it is done."""
        _OPERATION.pack_into(self._blocks, number * _IOCB.size + _OPERATION_AT, opcode, 0, fd, address, nbytes, offset)

    def submit(self, numbers: Sequence[int]) -> int:
        """Begin operations that are prepared; how many were, the first ones of them.

        Raises: OSError, which is about the first one, and none was begun.
        """
        first = self._first
        self._pointers[: len(numbers)] = [first + _IOCB.size * number for number in numbers]
        return int(self._calls.submit(self._context, len(numbers), self._pointers))

    def completed(self, most: int) -> list[tuple[int, int]]:
        """Operations that are done: number, and bytes transferred or a negative errno. Does not wait."""
        count = self._calls.getevents(self._context, 0, most, self._events, None)
        events = _EVENT.iter_unpack(self._view[: count * _EVENT.size])
        return [(number, result) for number, _, result, _ in events]

    def close(self) -> None:
        """Wait until all operations are done, and give everything up: 30 ms where nothing is left, so in a thread."""
        self._calls.destroy(self._context)
