"""Throttling: leaky buckets, and groups of nodes that share them.

Each limit is a bucket. A request pours its bytes, or its operations, in; the bucket leaks at the rate `avg`. A request
must wait while the level is above the capacity: it is let in when that has leaked away, and then pours in its own
amount, however much that is. So the rate holds on average for requests of any size.

With a burst (`max`) the capacity is `max * length`: after some rest that much goes at once, if need be; with a
`length` above 1 a second bucket, which leaks at the rate `max`, keeps the rate below `max` meanwhile. Without a burst
the capacity is a tenth of a second's worth.

The rules, and the names of properties, are those of QEMU's manual (docs/throttle.txt).
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, Final, Self

from aioblock.base.errors import OptionError
from aioblock.core.objects import NamedObject

if TYPE_CHECKING:
    from aioblock.base.options import Options

__all__ = ["LIMITS", "Bucket", "Limits", "ThrottleGroup", "ThrottleMember"]

LIMITS: Final = ("bps-total", "bps-read", "bps-write", "iops-total", "iops-read", "iops-write")
_MAX_RATE: Final = 1_000_000_000_000_000
_INSTANT: Final = 1e-9
"""Seconds that are no wait: what rounding leaves of one that is over."""
_SHORT_BURST: Final = 10
"""Of how many parts of a second's worth a bucket without a length holds one."""


class Bucket:
    """One limit. Rates are in units a second, `length` in seconds."""

    __slots__ = ("avg", "burst_level", "length", "level", "max")

    def __init__(self, avg: int = 0, max: int = 0, length: int = 1) -> None:
        self.avg = avg
        """0: no limit."""
        self.max = max
        self.length = length
        self.level = 0.0
        self.burst_level = 0.0

    def __repr__(self) -> str:
        return f"<Bucket avg={self.avg} max={self.max} length={self.length} level={self.level:g}>"

    def leak(self, seconds: float) -> None:
        """Time has passed."""
        self.level = max(self.level - self.avg * seconds, 0.0)
        self.burst_level = max(self.burst_level - self.max * seconds, 0.0)

    def wait(self) -> float:
        """How many seconds from now until a request may be let in."""
        if not self.avg:
            return 0.0
        capacity = self.max * self.length if self.max else self.avg / _SHORT_BURST
        if self.level > capacity:
            return (self.level - capacity) / self.avg
        if self.length > 1 and self.burst_level > self.max / _SHORT_BURST:
            return (self.burst_level - self.max / _SHORT_BURST) / self.max
        return 0.0

    def pour(self, amount: float) -> None:
        """A request was let in."""
        self.level += amount
        self.burst_level += amount


class Limits:
    """The limits of a group: a bucket for each of `LIMITS`, and the size above which one request counts as several."""

    def __init__(self, values: Mapping[str, int], iops_size: int = 0) -> None:
        """`values`: by property name, `bps-total`, `bps-total-max`, `bps-total-max-length` ... Raises: OptionError."""
        self.buckets = {
            name: Bucket(values.get(name, 0), values.get(f"{name}-max", 0), values.get(f"{name}-max-length", 1))
            for name in LIMITS
        }
        self.iops_size = iops_size
        self._check()
        self.applied = {
            direction: [
                (bucket, name.startswith("bps"))
                for name, bucket in self.buckets.items()
                if bucket.avg and name.endswith(("total", direction))
            ]
            for direction in ("read", "write")
        }
        """The buckets in use for each direction, and whether they count bytes."""

    def _check(self) -> None:
        buckets = self.buckets
        for unit in ("bps", "iops"):
            for part in ("avg", "max"):
                both = [getattr(buckets[f"{unit}-{way}"], part) for way in ("total", "read", "write")]
                if both[0] and (both[1] or both[2]):
                    raise OptionError("bps/iops/max total values and read/write values cannot be used at the same time")
        if self.iops_size and not any(buckets[f"iops-{way}"].avg for way in ("total", "read", "write")):
            raise OptionError("iops size requires an iops value to be set")
        for bucket in buckets.values():
            if bucket.avg > _MAX_RATE or bucket.max > _MAX_RATE:
                raise OptionError(f"bps/iops/max values must be within [0, {_MAX_RATE}]")
            if not bucket.length:
                raise OptionError("the burst length cannot be 0")
            if bucket.length > 1 and not bucket.max:
                raise OptionError("burst length set without burst rate")
            if bucket.max and bucket.length > _MAX_RATE // bucket.max:
                raise OptionError("burst length too high for this burst rate")
            if bucket.max and not bucket.avg:
                raise OptionError("bps_max/iops_max require corresponding bps/iops values")
            if bucket.max and bucket.max < bucket.avg:
                raise OptionError("bps_max/iops_max cannot be lower than bps/iops")

    def leak(self, seconds: float) -> None:
        """Time has passed."""
        for bucket in self.buckets.values():
            bucket.leak(seconds)

    def wait(self, direction: str) -> float:
        """How many seconds until a request may be let in: all its buckets must agree."""
        return max((bucket.wait() for bucket, _ in self.applied[direction]), default=0.0)

    def pour(self, direction: str, nbytes: int) -> None:
        """A request of so many bytes was let in."""
        operations = max(nbytes / self.iops_size, 1.0) if self.iops_size else 1.0
        for bucket, counts_bytes in self.applied[direction]:
            bucket.pour(nbytes if counts_bytes else operations)


class ThrottleMember:
    """One node of a group, and the requests of it that wait."""

    def __init__(self, group: "ThrottleGroup") -> None:
        self.group = group
        self.unlimited = 0
        """While it is not 0, nothing of this node waits."""
        self.waiting: dict[str, deque[tuple[int, asyncio.Future[None]]]] = {"read": deque(), "write": deque()}

    def __repr__(self) -> str:
        held = sum(map(len, self.waiting.values()))
        return f"<ThrottleMember of {self.group!r} waiting={held}>"

    async def admit(self, direction: str, nbytes: int) -> None:
        """Wait until a request of so many bytes may be done. `direction`: "read" or "write".

        Cancelled: it counts for nothing.
        """
        group = self.group
        if self.unlimited or not group.limits.applied[direction]:
            return
        queue = self.waiting[direction]
        if not group.is_waiting(direction) and group.let_in(direction, nbytes):
            return
        turn = asyncio.get_running_loop().create_future()
        entry = nbytes, turn
        queue.append(entry)
        group.queued(self, direction)
        try:
            await turn
        finally:
            if entry in queue:
                queue.remove(entry)

    def release(self) -> None:
        """Let everything go that waits, and is not counted."""
        for queue in self.waiting.values():
            while queue:
                _, turn = queue.popleft()
                if not turn.done():
                    turn.set_result(None)


class ThrottleGroup(NamedObject):
    """Limits that some nodes share. Nodes that wait get their turns one after the other, reads and writes apart."""

    type_name: ClassVar[str] = "throttle-group"
    properties: ClassVar[Mapping[str, str]] = {"limits": "ThrottleLimits", "x-iops-size": "int"} | {
        f"x-{name}{suffix}": "int" for name in LIMITS for suffix in ("", "-max", "-max-length")
    }

    def __init__(
        self,
        limits: Limits,
        *,
        now: Callable[[], float] | None = None,
        call_later: Callable[[float, Callable[[], None]], object] | None = None,
    ) -> None:
        """`now`, `call_later`: a clock in seconds other than the loop's."""
        self.limits = limits
        self._now, self._call_later = now, call_later
        self._before: float | None = None
        self._turns: dict[str, deque[ThrottleMember]] = {"read": deque(), "write": deque()}
        """The members that may have requests waiting, the next one first."""
        self._timers: dict[str, object] = {}

    def __repr__(self) -> str:
        return f"<ThrottleGroup {', '.join(name for name, bucket in self.limits.buckets.items() if bucket.avg)}>"

    @classmethod
    def define(cls, properties: "Options", objects: Mapping[str, NamedObject]) -> Self:
        """`x-iops-total`, `x-bps-write-max` ...; or the same below `limits`, without `x-`. Raises: OptionError."""
        values: dict[str, int] = {}
        for name in cls.properties:
            if name in properties and name != "limits":
                values[name.removeprefix("x-")] = _number(properties.take(name), name)
        below = properties.take("limits", {})
        if not isinstance(below, Mapping):
            raise OptionError("Invalid parameter type for 'limits', expected: object", option="limits")
        for name, value in below.items():
            if f"x-{name}" not in cls.properties:
                raise OptionError(f"Parameter 'limits.{name}' is unexpected", option=f"limits.{name}")
            values[name] = _number(value, f"limits.{name}")
        if unknown := properties.leftover():
            raise OptionError(f"Parameter '{unknown[0]}' is unexpected", option=unknown[0])
        return cls(Limits(values, values.pop("iops-size", 0)))

    # -- letting requests in -----------------------------------------------------------------------------------------

    def is_waiting(self, direction: str) -> bool:
        """Whether somebody waits already, and so comes first."""
        return any(member.waiting[direction] for member in self._turns[direction])

    def let_in(self, direction: str, nbytes: int) -> bool:
        """Let a request in if the limits allow it now."""
        self._pass_time()
        if self.limits.wait(direction) > _INSTANT:
            return False
        self.limits.pour(direction, nbytes)
        return True

    def queued(self, member: ThrottleMember, direction: str) -> None:
        """A request of a member waits."""
        turns = self._turns[direction]
        if member not in turns:
            turns.append(member)
        self._wake_later(direction)

    def _pass_time(self) -> None:
        now = self._now() if self._now is not None else asyncio.get_running_loop().time()
        if self._before is not None:
            self.limits.leak(now - self._before)
        self._before = now

    def _wake_later(self, direction: str) -> None:
        if direction in self._timers:
            return
        self._pass_time()
        call_later = self._call_later or asyncio.get_running_loop().call_later
        self._timers[direction] = call_later(self.limits.wait(direction), lambda: self._wake(direction))

    def _wake(self, direction: str) -> None:
        """Let in whoever may be let in now, the members in turn."""
        self._timers.pop(direction, None)
        turns = self._turns[direction]
        while turns:
            queue = turns[0].waiting[direction]
            while queue and queue[0][1].done():  # cancelled
                queue.popleft()
            if not queue:
                turns.popleft()
                continue
            nbytes, turn = queue[0]
            if not self.let_in(direction, nbytes):
                self._wake_later(direction)
                return
            queue.popleft()
            turns.rotate(-1)
            turn.set_result(None)


def _number(value: object, name: str) -> int:
    try:
        number = int(str(value), 10)
    except ValueError:
        raise OptionError(f"Parameter '{name}' expects integer", option=name) from None
    if number < 0:
        raise OptionError("Property values cannot be negative", option=name)
    return number
