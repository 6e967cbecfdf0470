"""The kinds of named objects, and how one is made from its definition, as QEMU's `--object` takes it."""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from aioblock.base.errors import OptionError
from aioblock.base.options import Options, nest, parse_keyval
from aioblock.core.authorization import AuthzList, AuthzSimple
from aioblock.core.objects import NamedObject
from aioblock.core.secrets import Secret
from aioblock.core.throttling import ThrottleGroup
from aioblock.core.tls import TlsPsk, TlsX509

__all__ = ["OBJECT_TYPES", "make_object"]

OBJECT_TYPES: Final[dict[str, type[NamedObject]]] = {
    kind.type_name: kind for kind in (AuthzList, AuthzSimple, Secret, ThrottleGroup, TlsPsk, TlsX509)
}
"""Every kind of named object."""

_ID = re.compile(r"[a-zA-Z][a-zA-Z0-9._-]*", re.ASCII)


def make_object(definition: str | Mapping[str, Any], objects: Mapping[str, NamedObject]) -> tuple[str, NamedObject]:
    """The id and the object of a definition: `secret,id=sec0,data=...`, JSON, or the properties as a mapping.

    `objects` are those that exist already: a secret may be encrypted with another, and no id is used twice. The new
    one is not put there. May read a small file, and blocks meanwhile. Raises: OptionError, NotSupported.
    """
    properties = Options(nest(_parsed(definition) if isinstance(definition, str) else definition))
    kind = properties.take_str("qom-type", None)
    if not kind:
        raise OptionError("Parameter 'qom-type' is missing", option="qom-type")
    if kind not in OBJECT_TYPES:
        raise OptionError(f"Parameter 'qom-type' does not accept value '{kind}'", option="qom-type")
    id = properties.take_str("id", None)
    if id is None:
        raise OptionError("Parameter 'id' is missing", option="id")
    if not _ID.fullmatch(id):
        raise OptionError(
            "Parameter 'id' expects an identifier\n"
            "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.",
            option="id",
        )
    made = OBJECT_TYPES[kind].define(properties, objects)
    if unknown := properties.leftover():
        raise OptionError(f"Parameter '{unknown[0]}' is unexpected", option=unknown[0])
    if id in objects:
        raise OptionError(f"attempt to add duplicate property '{id}' to object (type 'container')", option="id")
    made.id = id
    return id, made


def _parsed(definition: str) -> dict[str, Any]:
    if definition.startswith("{"):
        try:
            found = json.loads(definition)
        except (ValueError, RecursionError) as error:
            raise OptionError(f"JSON parse error, {error}") from None
        assert isinstance(found, dict)
        return found
    for part in definition.replace(",,", "").split(",")[1:]:
        if part and "=" not in part:
            raise OptionError(f"Expected '=' after parameter '{part}'", option=part)
    return dict(parse_keyval(definition, implied="qom-type"))
