"""`serve`: what others see of the exports, and what the terminal shows of them."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from rich.cells import cell_len

import aioblock
from aioblock.nbd.constants import CMD_READ
from aioblock.tools.cli.addresses import tcp_place
from aioblock.tools.cli.client_view import Row, table_text
from tests.kit import oracle
from tests.kit.certificates import Authority
from tests.kit.nbd_programs import nbdkit
from tests.kit.raw_nbd_client import connected
from tests.tools.cli.conftest import MiB, content
from tests.tools.cli.test_terminal import Screen, plain


class Served:
    """The program while it serves; `document` is what it printed when clients could come."""

    def __init__(self, folder, *args):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "aioblock", "serve", "--json", *map(str, args)],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        text = ""
        while not text.endswith("\n}\n"):
            line = self.process.stdout.readline()
            assert line, self.process.communicate(timeout=30)
            text += line
        self.document = json.loads(text)

    def uris(self, name):
        return next(export["uris"] for export in self.document["exports"] if export["name"] == name)

    def end(self, signum=signal.SIGINT):
        """Tell it to end; returns its status, and what it said."""
        self.process.send_signal(signum)
        _, err = self.process.communicate(timeout=30)
        return self.process.returncode, err


@pytest.fixture
def sock():
    """The path of a socket: pytest's own folders may have longer names than a socket can."""
    with tempfile.TemporaryDirectory(prefix="nbd-") as folder:
        yield os.path.join(folder, "s")


@pytest.fixture
def serve(chain):
    made = []

    def start(*args):
        made.append(Served(chain.folder, *args))
        return made[-1]

    yield start
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
        if not one.process.stdout.closed:
            one.process.communicate()


def of(uri, work):
    """What `work` returns, a coroutine function that is given the open export."""

    async def body():
        async with await aioblock.open(uri, format="raw", writable=work.__name__.startswith("write")) as disk:
            return await work(disk)

    return asyncio.run(body())


async def read_all(disk):
    return bytes(await disk.pread(0, disk.length))


async def write_some(disk):
    await disk.pwrite(0, b"new" * 100)
    await disk.flush()


async def exports_at(place):
    return {export.info.name: export for export in await aioblock.list_exports(place)}


@pytest.mark.slow
def test_several_images_at_several_addresses(chain, serve, sock):
    (chain.folder / "x=y.raw").write_bytes(b"z" * MiB)
    served = serve("top.qcow2", "data=base.qcow2", "x=y.raw", "-u", sock, "-t", "127.0.0.1:0", "-D", "words", "-A")
    assert [export["name"] for export in served.document["exports"]] == ["top", "data", "x=y"]
    assert served.document["exports"][0]["size"] == 10 * MiB
    assert all(export["read_only"] for export in served.document["exports"])
    found = asyncio.run(exports_at(sock))
    assert set(found) == {"top", "data", "x=y"}
    assert found["top"].info.description == "words"
    assert list(found["top"].contexts) == ["base:allocation", "qemu:allocation-depth"]
    whole = content("top.qcow2")
    for uri in served.uris("top"):
        assert of(uri, read_all) == whole
    assert of(f"nbd+unix:///?socket={sock}", read_all) == whole  # the first one is the default
    assert of(served.uris("x=y")[0], read_all) == b"z" * MiB
    status, err = served.end()
    assert status == 0
    assert "has opened 'top'" in err and "10 MiB read" in err
    assert not os.path.exists(sock)


@pytest.mark.slow
@pytest.mark.oracle
def test_other_programs_use_what_it_prints(chain, serve, sock):
    served = serve("top.qcow2", "-u", sock, "-q")
    (uri,) = served.uris("top")
    assert oracle.run("nbdinfo", "--size", uri).stdout == f"{10 * MiB}\n"
    assert oracle.run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", uri, "top.qcow2").returncode == 0
    assert served.end(signal.SIGTERM) == (0, "")


@pytest.mark.slow
def test_nobody_writes_unless_that_is_meant(chain, serve, sock):
    before = content("top.qcow2")
    served = serve("top.qcow2", "-u", sock)
    with pytest.raises(OSError):
        of(served.uris("top")[0], write_some)
    served.end()
    assert content("top.qcow2") == before
    served = serve("top.qcow2", "-u", sock, "--writable")
    assert not served.document["exports"][0]["read_only"]
    of(served.uris("top")[0], write_some)
    assert served.end()[0] == 0
    assert content("top.qcow2") == b"new" * 100 + before[300:]


@pytest.mark.slow
def test_events_as_json(chain, serve, sock):
    served = serve("top.qcow2", "-u", sock, "--show", "json")
    of(served.uris("top")[0], read_all)
    first, *_, last = map(json.loads, served.end()[1].splitlines())
    assert (first["event"], first["export"], first["requests"]) == ("opened", "top", 0)
    assert last["event"] == "gone" and last["requests"] > 0 and last["peer"].startswith("pid ")


@pytest.mark.slow
def test_tls(chain, serve, tmp_path):
    (tmp_path / "ca").mkdir()
    authority = Authority(tmp_path / "ca")
    folder, client = authority.server(), authority.client("good")
    served = serve("top.qcow2", "-t", "localhost:0", "--tls", folder, "--allow", "CN=good,*", "-v")
    uri = next(uri for uri in served.uris("top") if "::1" not in uri)
    assert uri.startswith("nbds://")
    port = int(re.search(r":(\d+)/", uri)[1])

    async def names(credentials):
        listed = await aioblock.list_exports(("127.0.0.1", port), tls=credentials)
        return [export.info.name for export in listed]

    assert asyncio.run(names(aioblock.TlsX509("client", str(client)))) == ["top"]
    with pytest.raises((OSError, aioblock.BlockError)):
        asyncio.run(names(aioblock.TlsX509("client", str(authority.client("bad")))))
    with pytest.raises((OSError, aioblock.BlockError)):
        asyncio.run(names(None))
    status, err = served.end()
    assert status == 0
    assert "a client was refused" in err and "CN=bad" in err


@pytest.mark.slow
@pytest.mark.oracle
def test_a_second_interrupt_gives_up_what_the_first_one_waits_for(serve, sock):
    """The image lies behind a server that takes a minute for each read."""

    async def interrupt(served):
        async with connected(sock) as client:
            await client.open("disk")
            client.send(CMD_READ, 0, 4096, cookie=1)
            refused = await client.ask(CMD_READ, 1 << 40, 512, cookie=2)
            assert refused.cookie == 2 and refused.error  # so the first one was taken up
            served.process.send_signal(signal.SIGINT)
            said = [served.process.stderr.readline() for _ in range(2)]
            assert "has opened 'disk'" in said[0] and "Ctrl-C again gives it up" in said[1]
            served.process.send_signal(signal.SIGINT)
            assert await client.at_end()

    folder = Path(sock).parent
    with nbdkit(folder, "--filter=delay", "memory", "1M", "rdelay=60", socket="slow") as slow:
        served = serve(f"disk=nbd+unix:///?socket={slow}", "-f", "raw", "-u", sock)
        asyncio.run(interrupt(served))
        served.process.communicate(timeout=30)
        assert served.process.returncode == 130


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (("a/top.qcow2", "top.qcow2"), 2, "would both be called 'top'"),
        (("nbd://localhost/x",), 2, "how shall its export be called?"),
        (("top.qcow2", "-t", "host:port"), 2, "is no address"),
        (("top.qcow2", "-w", "-s", "x"), 2, "cannot be written"),
        (("top.qcow2", "--tls-anonymous"), 2, "go with --tls FOLDER"),
        (("top.qcow2", "--tls", "."), 1, "Unable to access credentials"),
        (("top.qcow2", "-B", "x"), 1, "has no bitmap 'x'"),
        (("top.qcow2", "b=mid.qcow2", "-B", "x"), 1, "No image has a bitmap 'x'"),
        (("nosuch.qcow2",), 1, "hint: Check the name"),
        (("top.qcow2", "-u", "nosuch/socket"), 1, "Failed to bind socket"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_cannot_be(chain, args, status, said):
    result = chain("serve", *args)
    assert (result.status, result.out) == (status, "")
    assert said in result.err


def test_a_port_that_is_taken(chain):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = chain("serve", "top.qcow2", "-t", f"127.0.0.1:{taken.getsockname()[1]}")
    assert result.status == 1 and "Address already in use" in result.err and "hint: " in result.err


# The table


def row(number, export="disk", peer="127.0.0.1:40000", requests=10.0):
    client = aioblock.NbdClientInfo(number, peer, "session", False, 75.0, export, 100, 4096, 0, 3, 2 * MiB)
    return Row(client, requests, 5 * MiB, 0.0)


def test_the_table_has_what_each_client_does():
    text = table_text([row(1), row(2, "other", "[::1]:4", 99.4)], ["disk", "other", "third"], 120, 20)
    lines = text.plain.splitlines()
    assert "|".join(lines[0].split()) == "Client|Export|For|Requests/s|Read/s|Written/s|In|flight|Held"
    assert "|".join(lines[1].split()) == "[::1]:4|other|1|min|15|s|99|5|MiB|0|B|3|2|MiB"  # the busiest comes first
    assert lines[2].split()[0] == "127.0.0.1:40000"
    assert lines[3] == "2 clients of 2 of 3 exports: 109 requests/s, 10 MiB/s read, 0 B/s written"


@pytest.mark.parametrize("width", [1, 10, 30, 50, 80, 200])
@pytest.mark.parametrize("height", [1, 3, 4, 10, 60])
def test_the_table_fits_every_terminal(width, height):
    rows = [row(number, "d\x1b[2Jisk\u4e2d\u6587" * 3) for number in range(1, 50)]
    text = table_text(rows, ["disk"], width, height).plain
    lines = text.split("\n")
    assert len(lines) <= height
    assert max(map(cell_len, lines)) <= width
    assert "\x1b" not in text
    if height == 10:
        assert len(lines) == 10 and lines[-2].startswith("... and 42 more"[:width])


def test_the_table_without_clients_is_one_line():
    assert table_text([], ["disk"], 100, 20).plain.startswith("0 clients of 0 of 1 export: 0 requests/s")


@pytest.mark.slow
def test_on_a_terminal_there_is_a_table_and_nothing_of_it_afterwards(chain, sock):
    screen = Screen(chain.folder, "serve", "top.qcow2", "-u", sock)
    try:
        screen.read_until(r"0 clients of 0 of 1 export")
        with socket.socket(socket.AF_UNIX) as idle:
            idle.connect(sock)
            screen.read_until(rf"pid {os.getpid()}.*\(handshake\)")
        screen.process.send_signal(signal.SIGINT)
        status, text = screen.end()
    finally:
        if screen.process.poll() is None:
            screen.process.kill()
            screen.process.wait()
    assert status == 0
    assert "top.qcow2: qcow2, 10 MiB" in plain(text) and f"nbd+unix:///top?socket={sock}" in plain(text)
    assert "\x1b[?25h" in text  # the cursor is back


@pytest.mark.parametrize(
    ("text", "address", "host"),
    [
        ("", ("localhost", 10809), "localhost"),
        ("0", ("localhost", 0), "localhost"),
        (":80", ("localhost", 80), "localhost"),
        ("host", ("host", 10809), "host"),
        ("host:80", ("host", 80), "host"),
        ("[::1]:80", ("::1", 80), "::1"),
        ("[::1]", ("::1", 10809), "::1"),
        ("::1", ("::1", 10809), "::1"),
        ("*:80", ("", 80), socket.gethostname()),
    ],
)
def test_addresses_of_tcp(text, address, host):
    assert tcp_place(text) == (address, host)


@pytest.mark.slow
def test_a_socket_of_systemd(chain, sock):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(sock)
        listening.listen()
        like_systemd = (
            f"import os, sys; os.dup2({listening.fileno()}, 3); os.set_inheritable(3, True);"
            "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1'); os.execv(sys.argv[1], sys.argv[1:])"
        )
        words = [sys.executable, "-m", "aioblock", "serve", "top.qcow2", "-q"]
        process = subprocess.Popen(
            [sys.executable, "-c", like_systemd, *words], pass_fds=[listening.fileno()], cwd=chain.folder
        )
    try:
        assert of(f"nbd+unix:///top?socket={sock}", read_all) == content("top.qcow2")
    finally:
        process.terminate()
    assert process.wait(30) == 0
