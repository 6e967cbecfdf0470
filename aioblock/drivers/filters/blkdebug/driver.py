"""The filter: events come in, rules decide, requests fail or wait; what passes goes to the image."""

import asyncio
import errno
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

from aioblock.base.errors import NotSupported, OptionError
from aioblock.base.flags import (
    PERM_CONSISTENT_READ,
    PERM_RESIZE,
    PERM_WRITE,
    PERM_WRITE_UNCHANGED,
    REQ_MAY_UNMAP,
    REQ_NO_FALLBACK,
    REQ_UNCHANGED,
)
from aioblock.core.debugger import Debugger
from aioblock.core.filter import FilterDriver
from aioblock.core.images import Role
from aioblock.core.io import Status
from aioblock.core.limits import BlockLimits
from aioblock.drivers.filters.blkdebug.config import parse_config, take_rules
from aioblock.drivers.filters.blkdebug.events import EVENTS
from aioblock.drivers.filters.blkdebug.rules import Break, Rules

if TYPE_CHECKING:
    from aioblock.base.options import Options
    from aioblock.core.context import OpenContext
    from aioblock.core.io import BlockIO

__all__ = ["BlkdebugDriver"]

_NAMING: Final = """
    config align max-transfer opt-write-zero max-write-zero opt-discard max-discard inject-error set-state
    take-child-perms unshare-child-perms
"""
_PERMISSIONS: Final = {
    "consistent-read": PERM_CONSISTENT_READ,
    "write": PERM_WRITE,
    "write-unchanged": PERM_WRITE_UNCHANGED,
    "resize": PERM_RESIZE,
}
_MAX_LIMIT: Final = (1 << 31) - 1
"""Limits are 32-bit numbers in QEMU, whose scripts see that larger ones are refused."""


class Breakpoints(Debugger):
    """The debugger of one filter: who is suspended, under which tag."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._held: dict[str, list[asyncio.Future[None]]] = {}
        self._arrivals: dict[str, list[asyncio.Future[None]]] = {}

    def __repr__(self) -> str:
        return f"<Breakpoints suspended={sorted(self._held)} {self.rules!r}>"

    def _say(self, text: str) -> None:
        if self.announce is not None:
            self.announce(f"blkdebug: {text}")

    async def event(self, name: str) -> None:
        """Look at the rules of the event, and wait for everybody who holds it. Cancelled: nobody is held any more."""
        tags = self.rules.trigger(name)
        if not tags:
            return
        loop = asyncio.get_running_loop()
        holds = [(tag, loop.create_future()) for tag in tags]
        for tag, hold in holds:
            self._held.setdefault(tag, []).append(hold)
            self._say(f"Suspended request '{tag}'")
            for waiter in self._arrivals.pop(tag, ()):
                if not waiter.done():
                    waiter.set_result(None)
        try:
            for _, hold in holds:
                await hold
        finally:
            for tag, hold in holds:
                if not hold.done() or hold.cancelled():
                    self._forget(tag, hold)

    def _forget(self, tag: str, hold: "asyncio.Future[None]") -> None:
        held = self._held.get(tag, [])
        if hold in held:
            held.remove(hold)
        if not held:
            self._held.pop(tag, None)

    def set_break(self, event: str, tag: str) -> None:
        """One more breakpoint."""
        if event not in EVENTS:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        self.rules.add(Break(event, tag=tag))

    def remove_break(self, tag: str) -> None:
        """Take its breakpoints away, and resume all that it holds."""
        found = self.rules.remove_breaks(tag)
        while tag in self._held:
            self.resume(tag)
        if not found:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    def resume(self, tag: str) -> None:
        """Let the request go on that was suspended first."""
        if tag not in self._held:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        self._say(f"Resuming request '{tag}'")
        hold = self._held[tag][0]
        self._forget(tag, hold)
        hold.set_result(None)

    async def suspended(self, tag: str) -> None:
        """Wait for one, unless there is one."""
        if tag in self._held:
            return
        waiter = asyncio.get_running_loop().create_future()
        waiters = self._arrivals.setdefault(tag, [])
        waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in waiters:
                waiters.remove(waiter)


class BlkdebugDriver(FilterDriver):
    """Fails and suspends requests by rules; can also ask for stricter limits than the image has."""

    name: ClassVar[str] = "blkdebug"
    name_prefix: ClassVar[str] = "blkdebug:"
    naming_options: ClassVar[frozenset[str]] = frozenset(_NAMING.split())
    # FUA is left to the flush behind the write: that is the one that flush rules are about.
    supported_write_flags: int = REQ_UNCHANGED
    supported_zero_flags: int = REQ_MAY_UNMAP | REQ_NO_FALLBACK

    def __init__(self, image: "BlockIO", rules: Rules, limits: BlockLimits) -> None:
        super().__init__(image)
        # The generic code drops discards below their alignment; QEMU's hands them to the image, and so does this.
        unit = self._discard_unit = max(limits.pdiscard_alignment, limits.request_alignment)
        self._longest_discard = (limits.max_pdiscard or 1 << 63) // unit * unit
        self.limits = replace(limits, pdiscard_alignment=0, max_pdiscard=0)
        self.rules = rules
        self.debugger: Breakpoints = Breakpoints(rules)

    def __repr__(self) -> str:
        return f"<BlkdebugDriver {self.rules!r}>"

    @classmethod
    def parse_filename(cls, filename: str) -> dict[str, Any]:
        """`blkdebug:[CONFIG]:IMAGE`. Another name is that of the image; the options say the rest."""
        if not filename.startswith(cls.name_prefix):
            return {"x-image": filename}
        config, colon, image = filename.removeprefix(cls.name_prefix).partition(":")
        if not colon:
            raise OptionError("blkdebug requires both config file and image path", option="filename")
        return ({"config": config} if config else {}) | {"x-image": image}

    @classmethod
    async def open(cls, context: "OpenContext") -> Self:
        """Options: `config`, `inject-error.N.*`, `set-state.N.*`; `image`, the child; limits (see `_take_limits`).

        `take-child-perms`, `unshare-child-perms`: lists of what is asked of the image, and not shared, beside the rest.
        """
        options = context.options
        plain = not any(name in options for name in cls.naming_options - {"config"})
        config = options.take_str("config", None)
        rules = [] if config is None else parse_config(_read_config(config))
        rules += take_rules(options)
        taken, unshared = _take_permissions(options, "take"), _take_permissions(options, "unshare")
        image = await context.open_child(Role.IMAGE, options.take_str("x-image", None), perm=taken, unshared=unshared)
        driver = cls(image, Rules(rules), _take_limits(options))
        if plain and image.node.exact_filename:
            driver.exact_filename = f"{cls.name_prefix}{config or ''}:{image.node.exact_filename}"
        return driver

    # -- data --------------------------------------------------------------------------------------------------------

    async def _check(self, iotype: str, offset: int = 0, nbytes: int = 0) -> None:
        """Raises: OSError where an active rule wants the request to fail."""
        rule = self.rules.failure(iotype, offset, nbytes) if self.rules.active else None
        if rule is None or rule.errno <= 0:
            return
        if not rule.immediately:
            await asyncio.sleep(0)
        raise OSError(rule.errno, os.strerror(rule.errno))

    async def preadv(self, offset: int, buffer: memoryview, flags: int) -> None:
        """Read, unless it shall fail."""
        await self._check("read", offset, len(buffer))
        await self.file.readinto(offset, buffer, flags)

    async def pwritev(self, offset: int, data: memoryview, flags: int) -> None:
        """Write, unless it shall fail."""
        await self.debugger.event("pwritev")
        try:
            await self._check("write", offset, len(data))
            await self.file.pwrite(offset, data, flags)
        finally:
            await self.debugger.event("pwritev_done")

    async def pwrite_zeroes(self, offset: int, nbytes: int, flags: int) -> None:
        """Zero, unless it shall fail; only whole units of the alignment, where that is asked for."""
        await self.debugger.event("pwritev_zero")
        unit = max(self.limits.request_alignment, self.limits.pwrite_zeroes_alignment)
        if (offset | nbytes) & (unit - 1) and nbytes < unit:
            raise NotSupported
        try:
            await self._check("write-zeroes", offset, nbytes)
            await self.file.pwrite_zeroes(offset, nbytes, flags)
        finally:
            await self.debugger.event("pwritev_done")

    async def pdiscard(self, offset: int, nbytes: int) -> None:
        """Discard, unless it shall fail, cut at multiples of `opt-discard`: less than that is discarded too."""
        unit, end = self._discard_unit, offset + nbytes
        while offset < end:
            if offset % unit:
                stop = min(end, offset + -offset % unit)
            else:
                stop = min(end - end % unit, offset + self._longest_discard) if end - offset >= unit else end
            await self._check("discard", offset, stop - offset)
            await self.file.pdiscard(offset, stop - offset)
            offset = stop

    async def flush(self) -> None:
        """Fails where a rule wants that; the generic code then flushes the image."""
        await self._check("flush")

    async def block_status(self, offset: int, nbytes: int, want_zero: bool) -> Status:
        """Whatever the image says, unless it shall fail."""
        await self._check("block-status", offset, nbytes)
        return await super().block_status(offset, nbytes, want_zero)


def _read_config(filename: str) -> str:
    try:
        with open(filename, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError as error:
        raise OSError(error.errno, f"Could not read blkdebug config file: {error.strerror}") from None


def _take_permissions(options: "Options", which: str) -> int:
    name = f"{which}-child-perms"
    given = options.take(name, [])
    if not isinstance(given, list):
        raise OptionError(f"Parameter '{name}' expects a list of permissions", option=name)
    bits = 0
    for word in given:
        if word not in _PERMISSIONS:
            raise OptionError(f"Parameter '{name}' does not accept value '{word}'", option=name)
        bits |= _PERMISSIONS[word]
    return bits


def _take_limits(options: "Options") -> BlockLimits:
    """Options, all sizes in bytes: `align` of every request; `max-transfer`; the unit and the longest request of
    write-zeroes and discard: `opt-write-zero`, `max-write-zero`, `opt-discard`, `max-discard`.

    Raises: OptionError where one is not a multiple of what it must be.
    """
    align = _limit(options, "align", 1)
    if align & (align - 1):
        raise OptionError(f"Cannot meet constraints with align {align}", option="align")
    align = align or 1
    transfer = _limit(options, "max-transfer", align)
    zero = _limit(options, "opt-write-zero", align)
    max_zero = _limit(options, "max-write-zero", max(zero, align))
    discard = _limit(options, "opt-discard", align)
    max_discard = _limit(options, "max-discard", max(discard, align))
    return BlockLimits(
        request_alignment=align,
        max_transfer=transfer,
        pwrite_zeroes_alignment=zero,
        max_pwrite_zeroes=max_zero,
        pdiscard_alignment=discard,
        max_pdiscard=max_discard,
    )


def _limit(options: "Options", name: str, multiple: int) -> int:
    value = options.take_size(name, 0)
    if value > _MAX_LIMIT or value % multiple:
        raise OptionError(f"Cannot meet constraints with {name} {value}", option=name)
    return value
