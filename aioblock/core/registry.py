"""The registry of drivers: by name, and by looking at the first bytes of a file."""

from collections.abc import Callable, Iterable

from aioblock.base.errors import InvalidImage, OptionError, UnsupportedFeature
from aioblock.core.driver import BlockDriver
from aioblock.core.foreign import foreign_format

__all__ = [
    "PROBE_BYTES",
    "driver_names",
    "find_driver",
    "find_protocol",
    "probe_format",
    "register",
    "register_later",
    "register_prefixes",
]

PROBE_BYTES = 2048
"""How much of a file a probe sees. VMDK descriptors and VHD copies of the footer lie in the first sectors."""

_drivers: dict[str, type[BlockDriver]] = {}
_prefixes: dict[str, str] = {}
"""Names of protocols in file names that are not those of their drivers: {"nbd+unix": "nbd"}."""
_later: dict[str, tuple[str, Callable[[], type[BlockDriver]]]] = {}
"""Drivers that nobody asked for yet: their kind, and what loads them. Most programs use two or three of all."""


def register(*drivers: type[BlockDriver]) -> None:
    """Add drivers; one of a name that is there already takes its place."""
    for driver in drivers:
        _drivers[driver.name] = driver


def register_later(name: str, kind: str, load: Callable[[], type[BlockDriver]]) -> None:
    """Add a driver that is loaded when somebody asks for it, or for all of its kind."""
    _later[name] = kind, load


def register_prefixes(name: str, prefixes: Iterable[str]) -> None:
    """File names that begin with one of these and a colon are for the driver of that name, too."""
    _prefixes.update(dict.fromkeys(prefixes, name))


def _load(name: str) -> None:
    if name in _later:
        _, load = _later.pop(name)
        _drivers.setdefault(name, load())


def driver_names() -> list[str]:
    """The names of all drivers, sorted."""
    return sorted({*_drivers, *_later})


def find_driver(name: str) -> type[BlockDriver]:
    """The driver of that name. Raises: OptionError."""
    _load(name)
    try:
        return _drivers[name]
    except KeyError:
        raise OptionError(f"Unknown driver '{name}'", option="driver") from None


def find_protocol(prefix: str) -> type[BlockDriver] | None:
    """The driver that a name like `prefix:...` means, or None: a protocol, or a filter that has such names."""
    prefix = _prefixes.get(prefix, prefix)
    _load(prefix)
    driver = _drivers.get(prefix)
    return driver if driver is not None and (driver.kind == "protocol" or driver.name_prefix) else None


def probe_format(head: bytes, filename: str) -> type[BlockDriver]:
    """The format whose driver is surest of these first bytes; `raw` where no other is.

    Raises: InvalidImage where two formats are equally sure: a file made to be taken for one and then for the other;
    UnsupportedFeature where it is of a format that there is no driver for, and would be taken for raw.
    """
    for name in [name for name, (kind, _) in _later.items() if kind == "format"]:
        _load(name)
    scores = sorted(
        ((driver.probe(head, filename), driver.name) for driver in _drivers.values() if driver.kind == "format"),
        reverse=True,
    )
    if not scores:
        raise OptionError("no format driver is registered")
    best, name = scores[0]
    if best and len(scores) > 1 and scores[1][0] == best:
        raise InvalidImage(
            f"The format is ambiguous ('{name}' or '{scores[1][1]}'); say which one it is", filename=filename
        )
    if name == "raw" and (foreign := foreign_format(head)) is not None and foreign not in driver_names():
        raise UnsupportedFeature(
            f"This is an image of the format '{foreign}', which is not supported yet; "
            "with the format 'raw' its bytes are read as they are",
            features=(foreign,),
            filename=filename,
        )
    return _drivers[name]
