"""NbdDriver: an NBD export as a protocol node."""

import asyncio
import errno
import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self

from aioblock.base.errors import NbdError, NotSupported, OptionError
from aioblock.base.flags import REQ_FUA, REQ_MAY_UNMAP, REQ_NO_FALLBACK
from aioblock.base.options import Options
from aioblock.core.driver import BlockDriver
from aioblock.core.images import Prealloc
from aioblock.core.io import ContextRuns, Status
from aioblock.core.limits import BlockLimits
from aioblock.drivers.protocols.nbd.address import Address, take_address
from aioblock.drivers.protocols.nbd.connecting import Endpoint, connect
from aioblock.drivers.protocols.nbd.connection import Connection
from aioblock.drivers.protocols.nbd.links import Links
from aioblock.drivers.protocols.nbd.security import take_tls
from aioblock.drivers.protocols.nbd.status import batch_of, first_run
from aioblock.nbd.constants import (
    CMD_BLOCK_STATUS,
    CMD_CACHE,
    CMD_FLAG_FAST_ZERO,
    CMD_FLAG_FUA,
    CMD_FLAG_NO_HOLE,
    CMD_FLAG_PAYLOAD_LEN,
    CMD_FLAG_REQ_ONE,
    CMD_FLUSH,
    CMD_READ,
    CMD_TRIM,
    CMD_WRITE,
    CMD_WRITE_ZEROES,
    CONTEXT_ALLOCATION,
    FLAG_BLOCK_STATUS_PAYLOAD,
    FLAG_READ_ONLY,
    FLAG_SEND_CACHE,
    FLAG_SEND_FAST_ZERO,
    FLAG_SEND_FLUSH,
    FLAG_SEND_FUA,
    FLAG_SEND_TRIM,
    FLAG_SEND_WRITE_ZEROES,
    MAX_LENGTH_32,
    MAX_PAYLOAD,
    Mode,
)
from aioblock.nbd.replies import ReadReply, Reply, StatusReply
from aioblock.nbd.requests import pack_filter

if TYPE_CHECKING:
    from aioblock.core.context import OpenContext
    from aioblock.core.extents import ExtentBatch

__all__ = ["NbdDriver"]

_MAX_CONNECTIONS: Final = 64
_MAX_ZEROES: Final = 1 << 30
"""Bytes that one request trims or zeroes: a server may write that much."""
_PAUSE: Final = 0.1
"""Seconds between attempts to open."""


class NbdDriver(BlockDriver):
    """An export of an NBD server. Any number of requests are in flight, over one connection or several."""

    name = "nbd"
    kind = "protocol"
    flat_names = True
    naming_options = frozenset(("server", "path", "host", "port", "export", "tls-creds", "tls-hostname"))

    def __init__(self, links: Links, address: Address, export: str, context_name: str, *, no_flush: bool) -> None:
        self.links = links
        self.exact_filename = address.name_of(export)
        self.identity = ("nbd", address, export)
        self._no_flush = no_flush
        self.contexts = tuple(links.contexts)
        self._context = context_name
        info = links.info
        flags = info.flags
        self._flags = flags
        self.supported_write_flags = REQ_FUA if flags & FLAG_SEND_FUA else 0
        self.supported_zero_flags = (
            REQ_MAY_UNMAP
            | (REQ_FUA if flags & FLAG_SEND_FUA else 0)
            | (REQ_NO_FALLBACK if flags & FLAG_SEND_FAST_ZERO else 0)
        )
        zeroes = max(_MAX_ZEROES, info.min_block)
        self.limits = BlockLimits(
            request_alignment=info.min_block,
            max_transfer=min(info.max_block, MAX_PAYLOAD) // info.min_block * info.min_block,
            opt_transfer=info.preferred_block if info.preferred_block > 4096 else 0,
            pdiscard_alignment=0,
            max_pwrite_zeroes=zeroes,
            max_pdiscard=zeroes,
        )

    def __repr__(self) -> str:
        return f"<NbdDriver {self.exact_filename} {self.links!r}>"

    # -- open and close ----------------------------------------------------------------------------------------------

    @classmethod
    async def open(cls, context: "OpenContext") -> Self:
        """Connect.

        Options: `filename`, or `server` (type=unix|inet|vsock|fd and its parts), or `path`, or `host` and `port`;
        `export`; `tls-creds`, `tls-hostname`; `reconnect-delay` and `open-timeout` (seconds); `x-dirty-bitmap` (a
        metadata context to take block status from); `contexts` (names of more, for `context_runs`); `connections` (how
        many, where the server lets them).
        """
        options = context.options
        address, export = take_address(options)
        tls, hostname = take_tls(options, context.objects, address)
        delay, open_timeout = _seconds(context, "reconnect-delay"), _seconds(context, "open-timeout")
        bitmap = options.take_str("x-dirty-bitmap", None)
        contexts = _names(context, "contexts")
        count = options.take_int("connections", 1)
        if not 1 <= count <= _MAX_CONNECTIONS:
            raise OptionError(f"connections must be from 1 to {_MAX_CONNECTIONS}", option="connections")
        if address.kind == "fd" and (delay or open_timeout or count > 1):
            raise OptionError(
                "reconnect-delay, open-timeout, connections: a file descriptor cannot be connected again",
                option="server",
            )
        wanted_context = bitmap or CONTEXT_ALLOCATION
        endpoint = Endpoint(address, export, tuple(dict.fromkeys((wanted_context, *contexts))), tls, hostname)
        first = await _open_first(endpoint, open_timeout)
        links = Links(endpoint, first, wanted=count, reconnect_delay=delay)
        try:
            if bitmap is not None and bitmap not in links.contexts:
                raise OSError(errno.EINVAL, f"requested x-dirty-bitmap {bitmap} not found")
            for name in contexts:
                if name not in links.contexts:
                    raise OSError(errno.EINVAL, f"The server does not offer the metadata context '{name}'")
            if links.info.flags & FLAG_READ_ONLY and not context.read_only:
                raise OSError(errno.EACCES, "request on write denied: the export is read-only")
            await links.open_all()
        except BaseException:
            await links.close()
            raise
        return cls(links, address, export, wanted_context, no_flush=context.cache.no_flush)

    @classmethod
    async def create_file(cls, filename: str, options: Mapping[str, Any]) -> None:
        """See that the export is there, writable and long enough, and clear its first block: no old format is found.

        Failed: that block may be cleared. Raises: OptionError, NbdError, OSError.
        """
        address, export = take_address(known := Options({"filename": filename}))
        tls, hostname = take_tls(known, {}, address)
        endpoint = Endpoint(address, export, (), tls, hostname)
        first = await connect(endpoint)
        driver = cls(Links(endpoint, first), address, export, "", no_flush=False)
        try:
            if driver._flags & FLAG_READ_ONLY:
                raise OSError(errno.EACCES, "request on write denied: the export is read-only")
            size = driver.links.info.size
            if (options.get("size") or 0) > size:
                raise OSError(errno.EINVAL, "Cannot grow NBD nodes")
            nbytes = min(size, max(512, driver.limits.request_alignment))
            if nbytes:
                await driver.pwritev(0, memoryview(bytes(nbytes)), 0)
        finally:
            await driver.close()

    async def close(self) -> None:
        """Take leave of the server."""
        await self.links.close()

    async def reopen(self, *, read_only: bool, direct: bool, no_flush: bool) -> None:
        """Only an export that may be written is. Raises: OSError EACCES."""
        if not read_only and self._flags & FLAG_READ_ONLY:
            raise OSError(errno.EACCES, "request on write denied: the export is read-only")
        self._no_flush = no_flush

    async def getlength(self) -> int:
        """The size of the export, as the server told it at the beginning."""
        return self.links.info.size

    async def allocated_size(self) -> int | None:
        """A server does not tell."""
        return None

    # -- data --------------------------------------------------------------------------------------------------------

    async def preadv(self, offset: int, buffer: memoryview, flags: int) -> None:
        """Read straight into `buffer`; cancelled: it is not touched any more."""
        await self.links.request(partial(ReadReply, offset, buffer), CMD_READ, 0, offset, len(buffer))

    async def prefetch(self, offset: int, nbytes: int) -> None:
        """Tell the server to have it in its cache. NotSupported where it cannot."""
        if not self._flags & FLAG_SEND_CACHE:
            raise NotSupported
        end, longest = min(offset + nbytes, self.links.info.size), self.limits.max_transfer
        for at in range(offset, end, longest):  # QEMU's server takes no longer ones: it may read them
            await self._request(CMD_CACHE, 0, at, min(longest, end - at))

    async def pwritev(self, offset: int, data: memoryview, flags: int) -> None:
        """Write; the data must not change until it is done."""
        sent = CMD_FLAG_FUA if flags & REQ_FUA else 0
        nbytes = len(data)
        await self.links.request(partial(Reply, CMD_WRITE, offset, nbytes), CMD_WRITE, sent, offset, nbytes, data)

    async def pwrite_zeroes(self, offset: int, nbytes: int, flags: int) -> None:
        """Zero a range. NotSupported where the server cannot, or (REQ_NO_FALLBACK) not quickly."""
        if not self._flags & FLAG_SEND_WRITE_ZEROES:
            raise NotSupported
        sent = CMD_FLAG_FUA if flags & REQ_FUA else 0
        if not flags & REQ_MAY_UNMAP:
            sent |= CMD_FLAG_NO_HOLE
        if flags & REQ_NO_FALLBACK:
            sent |= CMD_FLAG_FAST_ZERO
        await self._request(CMD_WRITE_ZEROES, sent, offset, nbytes)

    async def pdiscard(self, offset: int, nbytes: int) -> None:
        """Trim a range. NotSupported where the server cannot."""
        if not self._flags & FLAG_SEND_TRIM:
            raise NotSupported
        await self._request(CMD_TRIM, 0, offset, nbytes)

    async def _request(self, command: int, flags: int, offset: int, nbytes: int) -> None:
        try:
            await self.links.request(partial(Reply, command, offset, nbytes), command, flags, offset, nbytes)
        except OSError as error:
            if error.errno == errno.ENOTSUP:
                raise NotSupported from None
            raise

    async def flush(self) -> None:
        """Flush the export. Fails once where the connection was lost with data that was not flushed."""
        if self._flags & FLAG_SEND_FLUSH and not self._flags & FLAG_READ_ONLY and not self._no_flush:
            await self.links.flush(partial(Reply, CMD_FLUSH))

    async def truncate(self, length: int, *, exact: bool, prealloc: Prealloc, flags: int) -> None:
        """An export keeps its size. Not `exact`: a smaller length is no error."""
        size = self.links.info.size
        if exact and length != size:
            raise NotSupported("Cannot resize NBD nodes")
        if length > size:
            raise OSError(errno.EINVAL, "Cannot grow NBD nodes")

    # -- status ------------------------------------------------------------------------------------------------------

    async def block_status(self, offset: int, nbytes: int, want_zero: bool) -> Status:
        """The first run, from the server."""
        reply, context = await self._status(offset, nbytes, one=True)
        return first_run(reply, context, self.limits.request_alignment)

    async def extents(self, offset: int, nbytes: int, want_zero: bool) -> "ExtentBatch":
        """As many runs as the server tells at once."""
        reply, context = await self._status(offset, nbytes, one=False)
        return batch_of(reply, context, self.limits.request_alignment)

    async def _status(self, offset: int, nbytes: int, *, one: bool) -> tuple[StatusReply, int]:
        context = self.links.contexts.get(self._context)
        if context is None:
            raise NotSupported
        return await self._ask(offset, nbytes, frozenset((context,)), one=one), context

    async def context_runs(self, offset: int, nbytes: int, names: Sequence[str]) -> dict[str, ContextRuns]:
        """As many runs of each context as the server tells at once."""
        ids = {name: self.links.contexts[name] for name in names}
        reply = await self._ask(offset, nbytes, frozenset(ids.values()), one=False)
        return {name: ContextRuns(reply.extents[id].lengths, reply.extents[id].flags) for name, id in ids.items()}

    async def _ask(self, offset: int, nbytes: int, contexts: frozenset[int], *, one: bool) -> StatusReply:
        """Ask for some contexts; where the server cannot be asked for less than all of them, the others are dropped."""
        if self.links.mode is not Mode.EXTENDED:
            nbytes = min(nbytes, MAX_LENGTH_32 // self.limits.request_alignment * self.limits.request_alignment)
        # Bytes behind the end, up to the next multiple of the alignment, are none of the server's.
        nbytes = min(nbytes, self.links.info.size - offset)
        flags, length, payload = CMD_FLAG_REQ_ONE if one else 0, nbytes, None
        every = frozenset(self.links.contexts.values())
        if contexts != every and self.links.mode is Mode.EXTENDED and self._flags & FLAG_BLOCK_STATUS_PAYLOAD:
            flags |= CMD_FLAG_PAYLOAD_LEN
            payload = memoryview(pack_filter(nbytes, tuple(contexts)))
            length = len(payload)
        else:
            contexts = every
        make = partial(StatusReply, offset, nbytes, contexts, one=one)
        reply = await self.links.request(make, CMD_BLOCK_STATUS, flags, offset, length, payload)
        assert isinstance(reply, StatusReply)
        return reply


async def _open_first(endpoint: Endpoint, timeout: float) -> Connection:
    """Connect; again and again for `timeout` seconds where that fails. Raises: OSError, with a message."""
    until = time.monotonic() + timeout
    while True:
        try:
            return await connect(endpoint)
        except (OSError, NbdError) as error:
            if time.monotonic() + _PAUSE > until:
                if isinstance(error, OSError) and not error.strerror:
                    raise OSError(errno.EIO, os.strerror(errno.EIO)) from error
                raise
        await asyncio.sleep(_PAUSE)


def _seconds(context: "OpenContext", name: str) -> float:
    value = context.options.take_int(name, 0)
    if not 0 <= value <= MAX_LENGTH_32:
        raise OptionError(f"Parameter '{name}' expects a number of seconds", option=name)
    return float(value)


def _names(context: "OpenContext", name: str) -> list[str]:
    """A list of strings, or one. Raises: OptionError."""
    value = context.options.take(name)
    value = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise OptionError(f"Parameter '{name}' expects a list of strings", option=name)
    return value
