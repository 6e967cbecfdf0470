"""The exports of an NBD server."""

from collections.abc import Mapping

from aioblock.api.opening import ImageName
from aioblock.base.options import Options, nest
from aioblock.core.objects import NamedObject
from aioblock.drivers.protocols.nbd.listing import list_exports
from aioblock.graph.names import to_options
from aioblock.nbd.client_handshake import ListedExport

__all__ = ["ListedExport", "nbd_exports"]


async def nbd_exports(name: ImageName, *, objects: Mapping[str, NamedObject] | None = None) -> list[ListedExport]:
    """What an NBD server offers: `info` of each export (its `size`, `flags`, block sizes in bytes), and `contexts`.

    `name`: a file name of the driver `nbd`, or its options; an export named in it counts not. `objects`: those that
    `tls-creds` may refer to. Cancelled: nothing is left. Raises: OptionError; OSError; NbdError.
    """
    given = dict(name) if isinstance(name, Mapping) else to_options(str(name))
    given.pop("driver", None)
    return await list_exports(Options(nest(given)), objects or {})
