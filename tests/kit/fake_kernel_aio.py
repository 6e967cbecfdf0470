"""The kernel's asynchronous I/O as the test wants it: operations wait until the test lets them be done, or fail."""

import ctypes
import os
from collections.abc import Sequence
from typing import NamedTuple

from aioblock.drivers.protocols.posix.kernel_aio import READ

__all__ = ["FakeKernelAio", "Operation"]


class Operation(NamedTuple):
    opcode: int
    fd: int
    address: int
    nbytes: int
    offset: int


class FakeKernelAio:
    """In the place of `KernelAio`. It begins everything, unless `answers` say what the next submissions come to."""

    def __init__(self, depth: int, notify: int) -> None:
        self.depth, self.notify = depth, notify
        self.operations: dict[int, Operation] = {}
        self.running: list[int] = []
        self.batches: list[int] = []
        """How many operations each submission has begun."""
        self.fetches: list[int] = []
        """How many were fetched at a time."""
        self.answers: list[int | OSError] = []
        self.closed = 0
        self._done: list[tuple[int, int]] = []

    # -- what the engine calls

    def prepare(self, number: int, opcode: int, fd: int, address: int, nbytes: int, offset: int) -> None:
        assert number < self.depth
        assert number not in self.running, "its memory is still in use"
        self.operations[number] = Operation(opcode, fd, address, nbytes, offset)

    def submit(self, numbers: Sequence[int]) -> int:
        answer = self.answers.pop(0) if self.answers else len(numbers)
        if isinstance(answer, OSError):
            raise answer
        self.running += numbers[:answer]
        self.batches.append(answer)
        return answer

    def completed(self, most: int) -> list[tuple[int, int]]:
        fetched, self._done = self._done[:most], self._done[most:]
        self.fetches.append(len(fetched))
        return fetched

    def close(self) -> None:
        self.closed += 1

    # -- what the test calls

    def end(self, number: int, result: int) -> None:
        """Operation `number` is done: so many bytes, or a negative errno."""
        self.running.remove(number)
        self._done.append((number, result))
        os.eventfd_write(self.notify, 1)

    def perform(self, count: int | None = None, nbytes: int | None = None) -> None:
        """Do the first `count` operations that run, or all; of each no more than `nbytes`."""
        for number in self.running[:count]:
            opcode, fd, address, length, offset = self.operations[number]
            memory = memoryview((ctypes.c_char * length).from_address(address)).cast("B")[:nbytes]
            call = os.preadv if opcode == READ else os.pwritev
            self.end(number, call(fd, (memory,), offset))
