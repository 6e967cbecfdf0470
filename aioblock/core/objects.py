"""Named objects: what options refer to by an id, and what is no node: secrets, groups of throttled nodes."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Self, TypeVar

from aioblock.base.errors import OptionError

if TYPE_CHECKING:
    from aioblock.base.options import Options

__all__ = ["NamedObject", "find_object"]


class NamedObject(ABC):
    """One named object. A new kind is a subclass, and an entry in the table of `graph.objects`."""

    type_name: ClassVar[str]
    """The name of the type in a definition, as QEMU spells it: "secret"."""
    id: str = ""
    """The id that the definition gave it; for messages."""
    properties: ClassVar[Mapping[str, str]]
    """What a definition may set, and the kind of each value, as help shows them: {"data": "string"}."""

    @classmethod
    @abstractmethod
    def define(cls, properties: "Options", objects: "Mapping[str, NamedObject]") -> Self:
        """Make an object from its properties, nested; what is not taken is refused by the caller.

        `objects` are those that were defined before. May read a small file, and blocks meanwhile. Raises: OptionError.
        """


T = TypeVar("T", bound=NamedObject)


def find_object(objects: Mapping[str, NamedObject], id: str, wanted: type[T]) -> T:
    """The object of that id, which must be of that type. Raises: OptionError."""
    found = objects.get(id)
    if found is None:
        raise OptionError(f"No {wanted.type_name} with id '{id}'")
    if not isinstance(found, wanted):
        raise OptionError(f"Object with id '{id}' is not a {wanted.type_name}")
    return found
