"""File names and options of the driver, and the names that it shows."""

from typing import Any

import pytest

from aioblock.base.errors import NotSupported, OptionError
from aioblock.base.options import Options
from aioblock.drivers.protocols.nbd.address import Address, take_address

UNIX = Address("unix", path="/s")
TCP = Address("inet", host="h", port="10809")


@pytest.mark.parametrize(
    ("options", "address", "export", "shown"),
    [
        ({"filename": "nbd:unix:/s"}, UNIX, "", "nbd+unix://?socket=/s"),
        ({"filename": "nbd:unix:/s:exportname=a"}, UNIX, "a", "nbd+unix:///a?socket=/s"),
        ({"filename": "nbd:unix:/s:exportname=a:b"}, UNIX, "a:b", "nbd+unix:///a:b?socket=/s"),
        ({"filename": "nbd:h:10809"}, TCP, "", "nbd://h:10809"),
        ({"filename": "nbd:[::1]:1:exportname=a"}, Address("inet", host="::1", port="1"), "a", "nbd://[::1]:1/a"),
        ({"filename": "nbd://h"}, TCP, "", "nbd://h:10809"),
        ({"filename": "nbd://h/a%20b"}, TCP, "a b", "nbd://h:10809/a b"),
        ({"filename": "nbd+unix:///a?socket=/s"}, UNIX, "a", "nbd+unix:///a?socket=/s"),
        ({"filename": "nbd+vsock://3:1/a"}, Address("vsock", host="3", port="1"), "a", "nbd+vsock://3:1/a"),
        ({"filename": "nbd:unix:/s", "export": "mine"}, UNIX, "mine", "nbd+unix:///mine?socket=/s"),
        ({"path": "/s", "export": "a"}, UNIX, "a", "nbd+unix:///a?socket=/s"),
        ({"host": "h"}, TCP, "", "nbd://h:10809"),
        ({"host": "h", "port": 10809}, TCP, "", "nbd://h:10809"),
        ({"server": {"type": "unix", "path": "/s"}}, UNIX, "", "nbd+unix://?socket=/s"),
        ({"server": {"type": "inet", "host": "h", "port": 10809}}, TCP, "", "nbd://h:10809"),
        ({"server": {"type": "fd", "str": 3}}, Address("fd", path="3"), "", ""),
    ],
)
def test_where_it_is(options: dict[str, Any], address: Address, export: str, shown: str) -> None:
    assert take_address(Options(options)) == (address, export)
    assert address.name_of(export) == shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "NBD server address missing"),
        ({"filename": "nbd:"}, "NBD server address missing"),
        ({"filename": "nbd:h:1:exportname="}, "NBD server address missing"),
        ({"filename": "nbd:h"}, "error parsing address 'h'"),
        ({"filename": "nbd+unix:///a"}, "No valid URL specified"),
        ({"filename": "nbd+unix:///a?socket=/s&x=y"}, "No valid URL specified: unknown parameter 'x'"),
        ({"filename": "nbd:unix:/s", "path": "/t"}, "file name and 'path' may not be used at the same time"),
        ({"path": "/s", "host": "h"}, "path and host may not be used at the same time"),
        ({"path": "/s", "server": {"type": "unix"}}, "'server' and path/host/port may not be used at the same time"),
        ({"port": "1"}, "port may not be used without host"),
        ({"path": "/s", "port": "1"}, "port may not be used without host"),
        ({"server": "s"}, "Parameter 'server' expects"),
        ({"server": {"path": "/s"}}, "Parameter 'server.type' is missing"),
        ({"server": {"type": "unix"}}, "Parameter 'path' is missing"),
        ({"server": {"type": "inet", "host": "h"}}, "Parameter 'port' is missing"),
        ({"server": {"type": "carrier-pigeon"}}, "Parameter 'type' does not accept value 'carrier-pigeon'"),
        ({"server": {"type": "unix", "path": "/s", "x": 1}}, "doesn't support the option 'server.x'"),
        ({"path": "/s", "export": "x" * 4097}, "export name too long to send to server"),
    ],
)
def test_what_makes_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        take_address(Options(options))
    assert str(caught.value).startswith(message) or message in str(caught.value)


def test_what_is_not_built() -> None:
    with pytest.raises(NotSupported):
        take_address(Options({"server": {"type": "inet", "host": "h", "port": "1", "mptcp": True}}))
