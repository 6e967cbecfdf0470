"""Job: what one kind of user does to an image, and for how long."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aioblock
from aioblock import BlockBackend, Image, NamedObject, OptionError

__all__ = ["ARRIVALS", "CHANGING", "KINDS", "PATTERNS", "Job", "check_together"]

KINDS = ("read", "write", "zeroes", "discard", "status", "flush")
"""What is asked of an image."""

CHANGING = frozenset(("write", "zeroes", "discard"))
"""The kinds that destroy what the image held."""

PATTERNS = ("sequential", "random", "zipf")
ARRIVALS = ("uniform", "poisson")

_TRUST = {"all": aioblock.TRUST_ALL, "directory": aioblock.TRUST_DIRECTORY, "none": aioblock.TRUST_NONE}

RATES = (1e-3, 1e9)
"""Requests a second: fewer are no load, more are less than a nanosecond apart."""
THETAS = (0.0, 10.0)
"""With more than that the first place gets all but one in a thousand."""

UNIT = 512
"""What is verified comes in multiples of this."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one kind of user does to an image. Sizes and offsets in bytes, times in seconds.

    Raises: OptionError with the name of the field as `option`.
    """

    image: Image
    """A name as `aioblock.open` takes it, an NBD URI too; or an open image, which stays open."""
    name: str = ""
    """What the result is called; the image's name if it is empty."""

    format: str | None = None
    """As for `aioblock.open`, like all of these."""
    options: Mapping[str, Any] = field(default_factory=dict)
    objects: Mapping[str, NamedObject] = field(default_factory=dict)
    cache: str = "writeback"
    aio: str | None = None
    """How a file is asked: the option `aio` of its driver."""
    trust: str = "directory"
    """Which files named inside the image may be opened: all, those in or below its directory, or none."""
    force_share: bool = False

    clients: int = 1
    """How many users there are, each with `depth` requests under way."""
    depth: int = 16
    shared: bool | None = None
    """Whether all clients use one open image, or each opens its own. None: they share one where they change it."""

    sizes: Mapping[int, float] = field(default_factory=lambda: {4096: 1.0})
    """Bytes of a request, and how often that size comes, relative to the others."""
    mix: Mapping[str, float] = field(default_factory=lambda: {"read": 1.0})
    """The kinds of requests, and how often each comes, relative to the others."""
    pattern: str = "random"
    """sequential: each client from its own place on, and round; random: every place alike; zipf: few places often."""
    theta: float = 0.99
    """The exponent of zipf: 0 is as random, 0.99 as in many papers, above 1 very few places."""
    offset: int = 0
    length: int | None = None
    """The part of the image that is used. None: to its end."""

    rate: float | None = None
    """Open loop: so many requests a second begin, whether or not earlier ones have ended. None: closed loop."""
    arrivals: str = "poisson"
    """When they come in an open loop: uniform, or poisson."""

    warmup: float = 0.0
    """So long before anything is counted."""
    seconds: float | None = None
    count: int | None = None
    """When it ends: after so many seconds or requests, whichever comes first. Neither: after 5 seconds."""
    verify: bool = False
    """What is written says what and where it is, and what is read is compared with that."""
    seed: int = 0
    """The same seed: the same requests in the same order, for each client."""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", _name_of(self.image))
        if self.seconds is None and self.count is None:
            object.__setattr__(self, "seconds", 5.0)
        for name in ("clients", "depth"):
            _whole(name, getattr(self, name), 1)
        for name in ("offset", "seed"):
            _whole(name, getattr(self, name), 0)
        for name in ("length", "count"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), 1)
        _number("warmup", self.warmup, (0, math.inf))
        _number("theta", self.theta, THETAS)
        if self.seconds is not None:
            _number("seconds", self.seconds)
        if self.rate is not None:
            _number("rate", self.rate, RATES)
        _one_of("pattern", self.pattern, PATTERNS)
        _one_of("arrivals", self.arrivals, ARRIVALS)
        _one_of("trust", self.trust, tuple(_TRUST))
        _weights("sizes", self.sizes)
        _weights("mix", self.mix)
        for size in self.sizes:
            _whole("sizes", size, 1)
        for kind in self.mix:
            _one_of("mix", kind, KINDS)
        if self.verify and any(number % UNIT for number in (*self.sizes, self.offset)):
            raise OptionError(f"verify: sizes and offset have to be multiples of {UNIT}", option="verify")

    @property
    def changes(self) -> bool:
        """Whether it destroys what the image held."""
        return any(self.mix.get(kind, 0) > 0 for kind in CHANGING)

    @property
    def writable(self) -> bool:
        """Whether the image has to be open for writing: to flush one that is not does nothing."""
        return self.changes or self.mix.get("flush", 0) > 0

    @property
    def sharing(self) -> bool:
        """Whether all clients use one open image."""
        return self.writable if self.shared is None else self.shared

    def opening(self) -> dict[str, Any]:
        """The arguments of `aioblock.open`."""
        options = dict(self.options) | ({"file.aio": self.aio} if self.aio is not None else {})
        return {
            "format": self.format,
            "options": options or None,
            "objects": self.objects,
            "cache": self.cache,
            "trust": _TRUST[self.trust],
            "force_share": self.force_share,
            "writable": self.writable,
        }

    def as_dict(self) -> dict[str, Any]:
        """What may be written down: all but the objects, which may be secret; an open image by its name."""
        found = {item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.name != "objects"}
        found["image"] = _name_of(self.image)
        found["options"] = dict(self.options)
        found["sizes"] = {str(size): weight for size, weight in self.sizes.items()}
        found["mix"] = dict(self.mix)
        return found

    def shares(self, parts: int) -> "list[Job]":
        """The job as each of so many processes does it: rate and count are divided among them.

        Raises: OptionError where it cannot be cut.
        """
        if isinstance(self.image, BlockBackend):
            raise OptionError("processes: an open image cannot be used by another process", option="image")
        if self.count is not None and self.count < parts:
            raise OptionError(f"count: {self.count} is fewer than the {parts} processes", option="count")
        found = []
        for part in range(parts):
            count = None if self.count is None else self.count // parts + (part < self.count % parts)
            found.append(dataclasses.replace(self, count=count, rate=None if self.rate is None else self.rate / parts))
        return found


def _name_of(image: Image) -> str:
    if isinstance(image, Mapping):
        return str(image.get("filename") or dict(image))
    return getattr(image, "name", None) or str(image)


def check_together(jobs: "list[Job]") -> None:
    """Jobs that run at a time: names differ, and what one verifies no other changes. Raises: OptionError."""
    names = [job.name for job in jobs]
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise OptionError(f"name: two jobs are called '{doubled}'", option="name")
    for job in jobs:
        for other in jobs:
            if job is not other and job.verify and other.changes and _overlap(job, other):
                raise OptionError(
                    f"verify: job '{other.name}' changes what job '{job.name}' verifies; give each its own part of the "
                    "image (offset, length)",
                    option="verify",
                )


def _overlap(one: Job, other: Job) -> bool:
    ends = [math.inf if job.length is None else job.offset + job.length for job in (one, other)]
    same = one.image is other.image or _name_of(one.image) == _name_of(other.image)
    return same and one.offset < ends[1] and other.offset < ends[0]


def _whole(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise OptionError(f"{name}: {value!r} is not a whole number from {least} on", option=name)


def _number(name: str, value: Any, between: tuple[float, float] | None = None) -> None:
    """A finite number above 0, or in a range with its ends."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if fits and (value > 0 if between is None else between[0] <= value <= between[1]):
        return
    words = "above 0" if between is None else f"from {between[0]:g} on"
    if between is not None and between[1] < math.inf:
        words = f"from {between[0]:g} to {between[1]:g}"
    raise OptionError(f"{name}: {value!r} is not a number {words}", option=name)


def _one_of(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise OptionError(f"{name}: {value!r} is none of {', '.join(known)}", option=name)


def _weights(name: str, weights: Any) -> None:
    if not isinstance(weights, Mapping) or not weights:
        raise OptionError(f"{name}: at least one is needed, with its weight", option=name)
    for key, weight in weights.items():
        _number(f"{name}.{key}", weight, (0, math.inf))
    if not any(weights.values()):
        raise OptionError(f"{name}: one weight has to be above 0", option=name)
