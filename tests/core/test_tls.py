"""TLS credentials: what their definition asks of the files, and what contexts come of them."""

import ssl
import sys
from pathlib import Path

import pytest

from aioblock.base.errors import NotSupported, OptionError
from aioblock.core.tls import TlsX509, find_tls_credentials
from aioblock.graph.objects import make_object
from tests.kit import oracle
from tests.kit.certificates import Authority

WRONG = [
    ("tls-creds-x509,id=t,endpoint=server", "Missing 'dir' property value"),
    (
        "tls-creds-x509,id=t,endpoint=server,dir=/nonexistent",
        "Unable to access credentials /nonexistent/ca-cert.pem: No such file or directory",
    ),
    ("tls-creds-x509,id=t,endpoint=both,dir=/", "Parameter 'endpoint' does not accept value 'both'"),
    (
        "tls-creds-psk,id=t,endpoint=server,dir=/nonexistent",
        "Unable to access credentials /nonexistent/keys.psk: No such file or directory",
    ),
]


@pytest.mark.parametrize(("definition", "message"), WRONG)
def test_wrong_ones(definition: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        make_object(definition, {})
    assert str(caught.value) == message


@pytest.mark.oracle
@pytest.mark.parametrize(("definition", "message"), WRONG)
def test_wrong_ones_as_qemu_calls_them(definition: str, message: str) -> None:
    done = oracle.qemu_img("info", "--object", definition, "/dev/null", check=False)
    assert done.stderr.removeprefix("qemu-img: ").rstrip() == message


@pytest.mark.slow
def test_x509(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    id, server = make_object(f"tls-creds-x509,id=tls0,endpoint=server,dir={authority.server()}", {})
    _, client = make_object(f"tls-creds-x509,id=tls1,endpoint=client,dir={authority.client()}", {})
    assert isinstance(server, TlsX509)
    assert isinstance(client, TlsX509)
    assert server.ssl_context().verify_mode == client.ssl_context().verify_mode == ssl.CERT_REQUIRED
    assert client.ssl_context().check_hostname
    assert find_tls_credentials({id: server}, "tls0", "server") is server
    with pytest.raises(OptionError, match="Expecting TLS credentials with a client endpoint"):
        find_tls_credentials({id: server}, "tls0", "client")
    with pytest.raises(OptionError, match="No TLS credentials with id 'other'"):
        find_tls_credentials({id: server}, "other", "client")


@pytest.mark.slow
def test_a_server_that_does_not_verify_needs_no_authority(tmp_path: Path) -> None:
    folder = Authority(tmp_path).server()
    (folder / "ca-cert.pem").unlink()
    _, server = make_object(f"tls-creds-x509,id=tls0,endpoint=server,verify-peer=off,dir={folder}", {})
    assert isinstance(server, TlsX509)
    assert server.ssl_context().verify_mode == ssl.CERT_NONE


@pytest.mark.slow
def test_a_file_that_is_none(tmp_path: Path) -> None:
    folder = Authority(tmp_path).server()
    (folder / "server-key.pem").write_text("nothing")
    with pytest.raises(OptionError, match="Unable to load TLS credentials from"):
        make_object(f"tls-creds-x509,id=tls0,endpoint=server,dir={folder}", {})


def test_shared_keys(tmp_path: Path) -> None:
    (tmp_path / "keys.psk").write_text("qemu:0011\n")
    definition = f"tls-creds-psk,id=tls0,endpoint=server,dir={tmp_path}"
    if sys.version_info >= (3, 13):
        make_object(definition, {})
    else:
        with pytest.raises(NotSupported, match=r"needs Python 3\.13"):
            make_object(definition, {})
    (tmp_path / "keys.psk").write_text("qemu:0011\nbad\n")
    with pytest.raises(OptionError, match="line 2 is not of the form"):
        make_object(definition, {})
    (tmp_path / "keys.psk").write_text("other:0011\n")
    with pytest.raises(OptionError, match="User 'qemu' is not in"):
        make_object(f"tls-creds-psk,id=tls0,endpoint=client,dir={tmp_path}", {})
