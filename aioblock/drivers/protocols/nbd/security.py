"""TLS: which the options ask for."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from aioblock.base.errors import OptionError
from aioblock.core.tls import find_tls_credentials
from aioblock.drivers.protocols.nbd.address import Address

if TYPE_CHECKING:
    import ssl

    from aioblock.base.options import Options
    from aioblock.core.objects import NamedObject

__all__ = ["take_tls"]


def take_tls(
    options: "Options", objects: "Mapping[str, NamedObject]", address: Address
) -> "tuple[ssl.SSLContext | None, str | None]":
    """The TLS to use, and the name that the certificate must be for where it is not the host's; None: no TLS.

    With `tls-creds` those credentials; for nbds:// the authorities that the host trusts. May read small files.
    Raises: OptionError, NotSupported.
    """
    id = options.take_str("tls-creds", None)
    wanted, verify = options.take_bool("tls", False), options.take_bool("tls-verify-peer", True)
    hostname = options.take_str("tls-hostname", None)
    if id is not None:
        context = find_tls_credentials(objects, id, "client").ssl_context()
    elif wanted:
        import ssl

        context = ssl.create_default_context()
        if not verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
    elif hostname is not None:
        raise OptionError("tls-hostname can only be used with tls-creds", option="tls-hostname")
    else:
        return None, None
    if context.check_hostname and address.kind != "inet" and hostname is None:
        context.check_hostname = False  # there is no name that a certificate could be for; its authority counts
    return context, hostname
