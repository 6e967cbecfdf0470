"""URIs, as the NBD URI specification has them."""

import pytest

from aioblock.base.errors import OptionError
from aioblock.nbd.uri import NbdUri


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("nbd://example.com/disk", NbdUri("tcp", host="example.com", export="disk")),
        ("nbd://example.com/", NbdUri("tcp", host="example.com")),
        ("nbd://example.com", NbdUri("tcp", host="example.com")),
        ("nbd://example.com//disk", NbdUri("tcp", host="example.com", export="/disk")),
        ("nbd://example.com/hello%20world", NbdUri("tcp", host="example.com", export="hello world")),
        ("nbd://[::1]:1234/x", NbdUri("tcp", host="::1", port=1234, export="x")),
        ("nbds://alice@host/x", NbdUri("tcp", True, "host", export="x", user="alice")),
        ("nbd+unix:///disk?socket=sock", NbdUri("unix", socket="sock", export="disk")),
        ("nbd+unix:///?socket=%00/abstract", NbdUri("unix", socket="\0/abstract")),
        ("nbd+unix://?socket=/a%20b", NbdUri("unix", socket="/a b")),
        ("nbds+unix:///?socket=s&tls-hostname=h", NbdUri("unix", True, socket="s", query={"tls-hostname": "h"})),
        ("nbd+vsock://1234/x", NbdUri("vsock", host="1234", export="x")),
        ("nbd+vsock:///x", NbdUri("vsock", host="2", export="x")),
        ("nbds+vsock://3:99/", NbdUri("vsock", True, "3", 99)),
        ("nbd://", NbdUri("tcp", host="localhost")),
        ("nbd+tcp://h:1/%C3%A9", NbdUri("tcp", host="h", port=1, export="é")),
    ],
)
def test_uris(text: str, uri: NbdUri) -> None:
    assert NbdUri.parse(text) == uri
    assert NbdUri.parse(str(uri)) == uri


@pytest.mark.parametrize(
    "text",
    [
        "http://example.com/",
        "nbd+unix:///disk",
        "nbd+unix://host/disk?socket=s",
        "nbd://host/disk?socket=s",
        "nbd://host:99999/",
        "nbd://host:x/",
        "nbd://[::1/",
        "nbd+vsock://host/",
    ],
)
def test_what_is_none(text: str) -> None:
    with pytest.raises(OptionError):
        NbdUri.parse(text)
