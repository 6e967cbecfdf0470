"""The driver nbd with TLS, over TCP and Unix sockets, against qemu-nbd, nbdkit and our own server: it fails closed."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import aioblock
from aioblock.base.errors import NbdError
from tests.kit.certificates import Authority
from tests.kit.nbd_programs import on_tcp, qemu_nbd

pytestmark = [pytest.mark.oracle, pytest.mark.slow]

MIB = 1 << 20
CONTENT = bytes(range(256)) * (MIB // 256)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


# Servers that want a certificate of each client; without `creds`: without TLS. They give their port.


@asynccontextmanager
async def qemus(image: Path, creds: Path | None) -> AsyncIterator[int]:
    definition = f"tls-creds-x509,id=t,endpoint=server,dir={creds},verify-peer=on"
    tls = ["--object", definition, "--tls-creds", "t"] if creds else []
    with on_tcp("qemu-nbd", *tls, "-f", "raw", image) as port:
        yield port


@asynccontextmanager
async def nbdkits(image: Path, creds: Path | None) -> AsyncIterator[int]:
    tls = ["--tls=require", f"--tls-certificates={creds}", "--tls-verify-peer"] if creds else ["--tls=off"]
    with on_tcp("nbdkit", *tls, "file", image) as port:
        yield port


@asynccontextmanager
async def ours(image: Path, creds: Path | None) -> AsyncIterator[int]:
    tls = None
    if creds:
        _, tls = aioblock.make_object(f"tls-creds-x509,id=t,endpoint=server,dir={creds},verify-peer=on", {})
    async with await aioblock.open(str(image), format="raw", writable=True) as disk:
        async with await aioblock.serve(disk, ("127.0.0.1", 0), tls=tls) as server:
            yield server.sockets[0].getsockname()[1]


Serving = Callable[[Path, Path | None], AbstractAsyncContextManager[int]]
SERVERS: dict[str, Serving] = {"qemu-nbd": qemus, "nbdkit": nbdkits, "ours": ours}
every_server = pytest.mark.parametrize("serving", SERVERS.values(), ids=SERVERS)


async def connected(creds: Path | None, **options: Any) -> aioblock.BlockBackend:
    """Open the export with the client's certificates in `creds`; None: without TLS."""
    objects = {}
    if creds is not None:
        id, client = aioblock.make_object(f"tls-creds-x509,id=tls0,endpoint=client,dir={creds}", {})
        objects, options = {id: client}, {"tls-creds": id} | options
    name = {"driver": "raw", "file": {"driver": "nbd"} | options}
    return await aioblock.open(name, objects=objects, writable=True)


def at(port: int, host: str = "127.0.0.1", **more: Any) -> dict[str, Any]:
    return {"server": {"type": "inet", "host": host, "port": str(port)}} | more


@every_server
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_over_tcp(image: Path, authority: Authority, serving: Serving, host: str) -> None:
    """The certificate is for both the address and the name."""
    async with serving(image, authority.server()) as port:
        async with await connected(authority.client(), **at(port, host, connections=3)) as disk:
            assert await disk.pread(0, MIB) == CONTENT
            await disk.pwrite(4096, b"x" * 100_000)
            await disk.flush()
            assert await disk.pread(4096, 100_000) == b"x" * 100_000


@every_server
@pytest.mark.parametrize("wrong", ["authority", "host name", "no certificate", "certificate of another", "no tls"])
async def test_what_fails(tmp_path: Path, image: Path, authority: Authority, serving: Serving, wrong: str) -> None:
    """Nothing is read, and nothing goes on in the open."""
    creds: Path | None = authority.client()
    options: dict[str, Any] = {}
    if wrong == "authority":
        creds = Authority(tmp_path, "other").client()
    elif wrong == "host name":
        options = {"tls-hostname": "elsewhere.example"}
    elif wrong == "no certificate":
        creds = authority.stranger()
    elif wrong == "certificate of another":
        creds = Authority(tmp_path, "other").client()
        (creds / "ca-cert.pem").unlink()
        (creds / "ca-cert.pem").symlink_to(authority.cert)  # it trusts the server, which does not trust it
    elif wrong == "no tls":
        creds = None
    async with serving(image, authority.server()) as port:
        with pytest.raises((OSError, NbdError)) as caught:
            await connected(creds, **at(port, **options))
        words = str(caught.value)
        if wrong == "authority":
            assert "TLS handshake failed" in words and "certificate verify failed" in words
        elif wrong == "host name":
            assert "TLS handshake failed" in words and "elsewhere.example" in words
        elif wrong == "no tls":
            assert "Server requires TLS" in words
        async with await connected(authority.client("good"), **at(port)) as disk:
            assert await disk.pread(0, MIB) == CONTENT, "the server is there, and well"


@every_server
async def test_a_server_without_tls(image: Path, authority: Authority, serving: Serving) -> None:
    async with serving(image, None) as port:
        with pytest.raises(NbdError, match=r"option 5 \(starttls\)"):
            await connected(authority.client(), **at(port))


@pytest.mark.parametrize("connections", [1, 3])
async def test_over_a_unix_socket(tmp_path: Path, image: Path, authority: Authority, connections: int) -> None:
    definition = f"tls-creds-x509,id=t,endpoint=server,dir={authority.server()},verify-peer=on"
    with qemu_nbd(tmp_path, "--object", definition, "--tls-creds", "t", "-f", "raw", image) as path:
        client = authority.client()
        async with await connected(client, path=path, connections=connections, **{"tls-hostname": "localhost"}) as disk:
            assert await disk.pread(0, MIB) == CONTENT
        with pytest.raises(OSError, match="TLS handshake failed"):
            await connected(client, path=path, **{"tls-hostname": "elsewhere"})
