"""Session: one client that uses an export: requests in, replies out, as many at a time as its bounds allow.

What is in memory is answered on the spot; all else becomes a task, and is answered when it is done, in any order. What
is ready within one turn of the loop is sent by one call. While the client does not take what is sent, replies wait, and
count against its bounds; at the bounds no more requests are received.
"""

import asyncio
import errno
import os
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from aioblock.base.errors import BlockError
from aioblock.base.flags import REQ_FUA, REQ_MAY_UNMAP, REQ_NO_FALLBACK
from aioblock.core.eager import Finished, start
from aioblock.exports.nbd.budget import RESERVE
from aioblock.exports.nbd.contexts import MAX_RUNS
from aioblock.exports.nbd.export import NbdExport
from aioblock.exports.nbd.reading import read_parts
from aioblock.exports.nbd.resources import Resources
from aioblock.nbd import errnos
from aioblock.nbd.constants import (
    CMD_BLOCK_STATUS,
    CMD_CACHE,
    CMD_DISC,
    CMD_FLAG_DF,
    CMD_FLAG_FAST_ZERO,
    CMD_FLAG_FUA,
    CMD_FLAG_NO_HOLE,
    CMD_FLAG_REQ_ONE,
    CMD_FLUSH,
    CMD_READ,
    CMD_TRIM,
    CMD_WRITE,
    CMD_WRITE_ZEROES,
    Mode,
)
from aioblock.nbd.packing import ReplyPacker, pack_extents
from aioblock.nbd.requests import Request, RequestReceiver, objection
from aioblock.nbd.server_handshake import Ready

if TYPE_CHECKING:
    pass

__all__ = ["Session"]

_INLINE: Final = 1 << 18
"""Reads up to this length are tried on the spot: 40 us of copying."""
_TURN_REQUESTS: Final = 64
_TURN_BYTES: Final = 1 << 20
"""How much is answered on the spot before others get a turn: 0.5 ms."""
_LITTLE: Final = _TURN_REQUESTS * 28
_OVERHEAD: Final = 1024
"""What a request counts beside its data."""


class Session:
    """The transmission phase of one connection, which owns it and its transport."""

    def __init__(
        self,
        transport: asyncio.Transport,
        export: NbdExport,
        ready: Ready,
        resources: Resources,
        ended: Callable[[], None],
    ) -> None:
        """`ended`: called when the client has said goodbye, or `finish` was called, and everything is answered."""
        self._transport = transport
        self.export = export
        self._disk = export.served
        self._base = export.offset
        self._info = replace(ready.export, min_block=1)  # any request is served, of those too who keep to nothing
        self.export_name = ready.export.canonical_name
        self._mode = ready.mode
        self._contexts = ready.contexts
        self._limits = resources.limits
        self._budget = resources.budget
        self._memory = resources.memory
        self._door = resources.door
        self._ended = ended
        self._receiver = RequestReceiver(ready.mode, allocate=resources.memory.take, scratch=resources.scratch)
        self._packer = ReplyPacker(ready.mode)
        self._head_bytes = 16 if ready.mode is Mode.SIMPLE else 28 if ready.mode is Mode.STRUCTURED else 40
        self._backlog: deque[Request] = deque()
        self.tasks: set[asyncio.Task[None]] = set()
        """Requests that wait for something, but for writes: those go on without the client, too."""
        self._writes = 0
        self.held = 0
        """Bytes that count against the bounds."""
        self._incoming = 0
        """The bytes of the long write that is being received, or waits in the backlog."""
        self._granted = 0
        """What of these is held."""
        self.requests = self.bytes_read = self.bytes_written = 0
        """What was taken up so far: see NbdClientInfo. Counted once a turn, which costs next to nothing."""
        self._reading = True
        self._finishing = False
        self._over = False
        self._again = False
        self._refused = 0
        """How many requests were refused since the last one that was not."""
        self._blocked = False
        self._replies: list[bytes | bytearray | memoryview] = []
        self._ready_bytes = 0
        """What the replies that are ready count."""
        self._sending_bytes = 0
        """What those count that the transport has."""
        self._borrowed: list[memoryview] = []
        self._sending: list[memoryview] = []
        self._flush_soon = False
        self._loop = asyncio.get_running_loop()
        self.get_buffer = self._receiver.get_buffer
        self.last_request = self._loop.time()

    @property
    def in_flight(self) -> int:
        """How many requests wait for the disk."""
        return len(self.tasks) + self._writes

    @property
    def idle(self) -> bool:
        """Whether nothing is being worked on, nor waits to be sent."""
        return not (self._backlog or self.tasks or self._writes or self._replies or self._blocked)

    # -- in ----------------------------------------------------------------------------------------------------------

    def received(self, nbytes: int) -> None:
        """`nbytes` were received into the buffer. Raises: RemoteProtocolError."""
        requests = self._receiver.buffer_updated(nbytes)
        if not self._incoming and self._receiver.incoming > RESERVE:
            self._incoming = self._receiver.incoming  # it is received further when it may be held
        self.take(requests)

    def received_before(self, data: bytes) -> None:
        """What came with the last option of the handshake. Raises: RemoteProtocolError."""
        self.take(self._receiver.feed(data))

    def take(self, requests: list[Request]) -> None:
        """Work on requests, as far as the bounds allow now."""
        self.last_request = self._loop.time()
        if self._finishing:
            return  # what comes behind a goodbye
        self._backlog.extend(requests)
        if self._again:
            return
        if self._refused < _TURN_REQUESTS:
            self._work()
        else:
            self._work_later()

    def _work_later(self) -> None:
        self._again = True
        if self._refused < _TURN_REQUESTS:
            self._loop.call_soon(self._work)
        else:
            self._set_reading(False)
            self.get_buffer = self._get_little
            self._door.enter(self._work)

    def _get_little(self) -> memoryview:
        """While everything is refused: memory for as many requests as are worked on at a time, or fewer."""
        room = self._receiver.get_buffer()
        if self._refused >= _TURN_REQUESTS:
            return room[:_LITTLE]
        self.get_buffer = self._receiver.get_buffer
        return room

    def _work(self) -> None:
        self._again = False
        if self._over:
            return
        backlog = self._backlog
        turn, turn_bytes = _TURN_REQUESTS, _TURN_BYTES
        written = 0
        while backlog:
            request = backlog[0]
            if request.command == CMD_DISC:
                self.finish()
                backlog.clear()
                break
            carried = request.length if request.command in (CMD_READ, CMD_WRITE) else 0
            if turn <= 0 or turn_bytes <= 0:
                self._work_later()
                break
            long = request.command == CMD_WRITE and carried == self._incoming != 0
            if long and self._granted:
                self._hold(-self._granted)
            elif not self._admit(carried):
                break
            if long:
                self._incoming = self._granted = 0
            turn -= 1
            turn_bytes -= carried
            if request.command == CMD_WRITE:
                written += carried
            backlog.popleft()
            self._serve(request, carried + _OVERHEAD)
        self.requests += _TURN_REQUESTS - turn
        self.bytes_read += _TURN_BYTES - turn_bytes - written
        self.bytes_written += written
        if self._incoming and not self._granted and not backlog and self._admit(self._incoming):
            self._granted = self._incoming
            self._hold(self._granted)
        self._set_reading(not backlog and self._granted == self._incoming and not self._finishing)
        self._send()

    def _admit(self, carried: int) -> bool:
        """Whether one more request may be worked on; if not, `_work` is called again when it may."""
        held = self.held
        at_work = len(self.tasks) + self._writes
        if held and (held + carried > self._limits.client_bytes or at_work >= self._limits.requests):
            return False
        if self._budget.fits(held, carried):
            return True
        self._budget.wait(self._work, held, carried)
        return False

    def _set_reading(self, wanted: bool) -> None:
        if wanted is not self._reading:
            self._reading = wanted
            if wanted:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    # -- one request -------------------------------------------------------------------------------------------------

    def _serve(self, request: Request, weight: int) -> None:
        self._hold(weight)
        error, words = objection(request, self._info, self._mode)
        if error:
            self._refused += 1
            self._answer(self._packer.error(request, error, words), weight)
            return
        self._refused = 0
        if request.command == CMD_READ and 0 < request.length <= _INLINE and self._read_now(request, weight):
            return
        if request.command == CMD_WRITE and not request.flags and self._write_soon(request, weight):
            return
        begun = start(self._run(request, weight))
        if isinstance(begun, Finished):
            begun.result()
            return
        self.tasks.add(begun)
        begun.add_done_callback(self._task_done)

    def _read_now(self, request: Request, weight: int) -> bool:
        nbytes = request.length
        head = self._packer.read_head(request, request.offset, nbytes)
        try:
            if nbytes >= self._memory.smallest:
                view = self._memory.take(nbytes)
                if not self._disk.readinto_now(self._base + request.offset, view):
                    self._memory.give(view)
                    return False
                self._borrowed.append(view)
                self._replies.append(head)
                self._answer(view, weight)
                return True
            reply = bytearray(self._head_bytes + nbytes)
            if not self._disk.readinto_now(self._base + request.offset, memoryview(reply)[self._head_bytes :]):
                return False
        except OSError as error:
            self._fail(request, error, weight)
            return True
        reply[: self._head_bytes] = head
        self._answer(reply, weight)
        return True

    def _write_soon(self, request: Request, weight: int) -> bool:
        assert request.data is not None
        done = partial(self._written, request, weight)
        if not self._disk.pwrite_soon(self._base + request.offset, request.data, done):
            return False
        self._writes += 1
        return True

    def _written(self, request: Request, weight: int, error: Exception | None) -> None:
        self._writes -= 1
        if self._over:
            self._release(weight)
            return
        if error is None:
            self._answer(self._packer.success(request), weight)
        else:
            self._fail(request, error, weight)
        self._go_on()

    async def _run(self, request: Request, weight: int) -> None:
        try:
            await _VERBS[request.command](self, request, weight)
        except (OSError, BlockError) as error:
            self._fail(request, error, weight)
        except BaseException:  # cancelled: nobody is there to be answered
            self._release(weight)
            raise

    def _fail(self, request: Request, error: Exception, weight: int) -> None:
        code = error.errno if isinstance(error, OSError) else errno.EIO
        words = os.strerror(code or errno.EIO)  # not the message, which may name files of this host
        self._answer(self._packer.error(request, errnos.to_wire(code), words), weight)

    async def _read(self, request: Request, weight: int) -> None:
        nbytes = request.length
        if not nbytes:
            self._answer(self._packer.success(request), weight)
            return
        sparse = self._mode is not Mode.SIMPLE and not request.flags & CMD_FLAG_DF
        parts = await read_parts(self.export, self._memory, request.offset, nbytes, sparse=sparse)
        for number, part in enumerate(parts, 1):
            last = number == len(parts)
            if part.data is None:
                self._replies.append(self._packer.hole(request, part.offset, part.nbytes, last=last))
            else:
                self._borrowed.append(part.data)
                self._replies += (self._packer.read_head(request, part.offset, part.nbytes, last=last), part.data)
        self._answer(self._replies.pop(), weight)

    async def _write(self, request: Request, weight: int) -> None:
        assert request.data is not None
        await self._disk.pwrite(self._base + request.offset, request.data, _fua(request))
        self._memory.give(request.data)  # not where it failed, or was cancelled: it may still be used
        self._answer(self._packer.success(request), weight)

    async def _flush(self, request: Request, weight: int) -> None:
        await self._disk.flush()
        self._answer(self._packer.success(request), weight)

    async def _trim(self, request: Request, weight: int) -> None:
        await self._disk.pdiscard(self._base + request.offset, request.length)
        if request.flags & CMD_FLAG_FUA:
            await self._disk.flush()
        self._answer(self._packer.success(request), weight)

    async def _cache(self, request: Request, weight: int) -> None:
        await self._disk.prefetch(self._base + request.offset, request.length)
        self._answer(self._packer.success(request), weight)

    async def _write_zeroes(self, request: Request, weight: int) -> None:
        flags = _fua(request)
        if not request.flags & CMD_FLAG_NO_HOLE:
            flags |= REQ_MAY_UNMAP
        if request.flags & CMD_FLAG_FAST_ZERO:
            flags |= REQ_NO_FALLBACK
        await self._disk.pwrite_zeroes(self._base + request.offset, request.length, flags)
        self._answer(self._packer.success(request), weight)

    async def _block_status(self, request: Request, weight: int) -> None:
        names = self._contexts
        if request.contexts is not None:
            if len(set(request.contexts)) != len(request.contexts) or not names.keys() >= set(request.contexts):
                self._answer(self._packer.error(request, errnos.EINVAL, "Contexts that were not selected"), weight)
                return
            names = {id: names[id] for id in request.contexts}
        if not names:
            self._answer(self._packer.error(request, errnos.EINVAL, "No metadata context was selected"), weight)
            return
        limit = 1 if request.flags & CMD_FLAG_REQ_ONE else MAX_RUNS
        offset = self._base + request.offset
        wide = self._mode is Mode.EXTENDED
        parts = []
        for number, (id, name) in enumerate(names.items(), 1):
            runs = await self.export.contexts[name].runs(offset, request.length, limit)
            payload = pack_extents(runs.lengths, runs.flags, wide=wide)
            parts.append(self._packer.extents(request, id, payload, last=number == len(names)))
        self._answer(b"".join(parts), weight)

    # -- out ---------------------------------------------------------------------------------------------------------

    def _answer(self, reply: bytes | bytearray | memoryview, weight: int) -> None:
        """Send a reply, with what is before it in `_replies`, at the end of this turn of the loop."""
        self._replies.append(reply)
        self._ready_bytes += weight
        if not self._flush_soon:
            self._flush_soon = True
            self._loop.call_soon(self._send_soon)

    def _send_soon(self) -> None:
        self._flush_soon = False
        self._send()

    def _send(self) -> None:
        if self._replies and not self._blocked and not self._over:
            replies, self._replies = self._replies, []
            self._sending_bytes, self._ready_bytes = self._ready_bytes, 0
            self._sending, self._borrowed = self._borrowed, []
            self._transport.writelines(replies)
            if not self._blocked:  # told at once where not everything could be sent: see `pause_writing`
                self._sent()
        if self._finishing and self.idle:
            self._finished()

    def _sent(self) -> None:
        for view in self._sending:
            self._memory.give(view)
        self._sending = []
        nbytes, self._sending_bytes = self._sending_bytes, 0
        self._release(nbytes)
        self._go_on()

    def _hold(self, nbytes: int) -> None:
        self.held += nbytes
        self._budget.held += nbytes

    def _release(self, nbytes: int) -> None:
        self.held -= nbytes
        self._budget.give_back(nbytes)

    def pause_writing(self) -> None:
        """The transport holds something that the client has not taken."""
        self._blocked = True

    def resume_writing(self) -> None:
        """It holds nothing any more."""
        self._blocked = False
        self._sent()
        self._send()

    def _task_done(self, task: "asyncio.Task[None]") -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._over = True
            self._transport.abort()
            raise error
        self._go_on()

    def _go_on(self) -> None:
        """There may be room for more requests."""
        if (self._backlog or self._finishing or self._incoming != self._granted) and not self._again and not self._over:
            self._again = True
            self._loop.call_soon(self._work)

    # -- end ---------------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Receive nothing more; `ended` is called when all that was accepted is answered, perhaps right now."""
        if not self._finishing and not self._over:
            self._finishing = True
            self._set_reading(False)
            self._go_on()

    def _finished(self) -> None:
        if not self._over:
            self._over = True
            self._ended()

    def lost(self) -> None:
        """The connection is gone. Reads that run are given up; changes go on, as everywhere, without us."""
        self._over = True
        self._budget.forget(self._work)
        self._backlog.clear()
        self._replies.clear()
        self._borrowed.clear()
        self._sending.clear()  # the transport may still look at it: it is not given to anybody else
        self._release(self._ready_bytes + self._sending_bytes + self._granted)
        self._ready_bytes = self._sending_bytes = self._incoming = self._granted = 0
        for task in self.tasks:
            task.cancel()


def _fua(request: Request) -> int:
    return REQ_FUA if request.flags & CMD_FLAG_FUA else 0


_VERBS: Final[dict[int, Callable[[Session, Request, int], Coroutine[Any, Any, None]]]] = {
    CMD_READ: Session._read,
    CMD_WRITE: Session._write,
    CMD_FLUSH: Session._flush,
    CMD_TRIM: Session._trim,
    CMD_CACHE: Session._cache,
    CMD_WRITE_ZEROES: Session._write_zeroes,
    CMD_BLOCK_STATUS: Session._block_status,
}
