"""GraphContext: the OpenContext of one node: which driver it gets, and how its children are opened."""

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any

from aioblock.base.errors import BlockError, InvalidImage, OptionError, with_context
from aioblock.base.flags import PERM_ALL, PERM_CONSISTENT_READ
from aioblock.base.options import Options
from aioblock.blockio.child import Child
from aioblock.core.context import OpenContext
from aioblock.core.driver import BlockDriver
from aioblock.core.eager import cancelled_once
from aioblock.core.images import InnerName, Role
from aioblock.core.node import BlockNode
from aioblock.core.registry import PROBE_BYTES, find_driver, probe_format
from aioblock.graph.names import (
    check_path,
    file_protocol,
    protocol_of,
    strip_protocol,
    to_options,
)
from aioblock.graph.permissions import attach, child_permissions, update_permissions
from aioblock.graph.settings import OpenSettings, Place, unmaps
from aioblock.graph.trust import trusted

__all__ = ["GraphContext"]

OpenNode = Callable[[dict[str, Any], OpenSettings, Place], Coroutine[Any, Any, BlockNode]]
CloseNode = Callable[[BlockNode], Coroutine[Any, Any, None]]


class GraphContext(OpenContext):
    """The OpenContext of one node. Opening and closing of other nodes come from `graph.opening`."""

    def __init__(
        self,
        node: BlockNode,
        reader: Options,
        settings: OpenSettings,
        place: Place,
        open_node: OpenNode,
        close_node: CloseNode,
    ) -> None:
        self.node, self.options, self.place = node, reader, place
        self._open_node, self._close_node = open_node, close_node
        self.node_name = node.name
        self.read_only = node.read_only
        self.cache = node.cache
        self.force_share = reader.take_bool("force-share", settings.force_share)
        if self.force_share and not node.read_only:
            raise OptionError("force-share=on can only be used with read-only images", option="force-share")
        self.for_check = settings.for_check
        self.metadata_only = settings.metadata_only
        self.objects = settings.objects
        self.unmap = unmaps(reader.take("discard", "unmap" if settings.unmap else "ignore"))
        self.aio = settings.aio
        self.settings = replace(settings, force_share=self.force_share, cache=self.cache, unmap=self.unmap)
        self.probed = False
        self.filename = ""
        self.this = Child(None, None, node)
        self.plain = True
        """The file name alone says how to open the node."""
        self.backing_overridden = False
        self._driver: type[BlockDriver] | None = None
        self._probed_file: Child | None = None

    @property
    def is_protocol(self) -> bool:
        """Whether the node's driver is a protocol."""
        return self._driver is not None and self._driver.kind == "protocol"

    # -- which driver ------------------------------------------------------------------------------------------------

    async def choose_driver(self) -> type[BlockDriver]:
        """The driver that the options name, or that the content tells. Raises: OptionError, InvalidImage, OSError."""
        options = self.options
        name = options.take_str("driver", None)
        filename = options.take_str("filename", None)
        if filename is not None:
            check_path(filename)
        if name is not None:
            self._driver = find_driver(name)
        elif self.place.protocol:
            if filename is None:
                raise OptionError("Must specify either driver or file")
            self._driver = file_protocol(filename)
        if filename is not None:
            self._name_file(filename)
        if self._driver is None:
            if "file" not in options:
                raise OptionError("Must specify either driver or file")
            self._driver = await self._probe()
        self.plain = not any(key in options for key in self._driver.naming_options)
        return self._driver

    def _name_file(self, filename: str) -> None:
        """Put the file name where the driver looks for it. That of a protocol is taken as it is; that of an image may
        say which protocol it is for; some filters have options in theirs.
        """
        if self._driver is not None and self._driver.name_prefix:
            for key, value in self._driver.parse_filename(filename).items():
                self.options.put(key, value)
            return
        self.filename = filename if self.is_protocol else strip_protocol(filename)
        if self.is_protocol:
            self.options.put("filename", self.filename)
            return
        file = self.options.take("file", {})
        if not isinstance(file, Mapping):
            raise OptionError(
                "Cannot reference an existing block device with additional options or a new filename", option="file"
            )
        if "filename" in file:
            raise OptionError("Can't specify 'file' and 'filename' options at the same time", option="file")
        named = {"driver": protocol_of(filename).name, "filename": self.filename}
        self.options.put("file", named | dict(file))

    async def _probe(self) -> type[BlockDriver]:
        """Guess the format from the first bytes; the file that was probed is the one that is used."""
        allowed = self.settings.probe
        if allowed is None:
            allowed = self.place.depth == 1 and not self.place.writable
        if not allowed:
            raise OptionError(
                f"The format of '{self.filename}' must be given: a guess can be wrong, and an image can lie about it",
                option="driver",
                filename=self.filename,
            )
        file = self._probed_file = await self._open(Role.FILE, PERM_CONSISTENT_READ, PERM_ALL)
        head = await file.pread(0, min(PROBE_BYTES, file.length))
        self.probed = True
        return probe_format(bytes(head), self.filename)

    # -- children ----------------------------------------------------------------------------------------------------

    async def open_child(
        self, role: Role, filename: str | None = None, *, number: int | None = None, perm: int = 0, unshared: int = 0
    ) -> Child:
        assert self._driver is not None
        if filename is not None:
            self._name_child(role, filename)
        asked, shared = child_permissions(
            self._driver, role, self.place.perm, self.place.shared, writable=self.place.writable
        )
        perm |= asked
        shared = PERM_ALL if self.force_share else shared & ~unshared
        if role is Role.FILE and self._probed_file is not None:
            child, self._probed_file = self._probed_file, None
            await update_permissions(child, perm, shared)
        else:
            child = await self._open(role, perm, shared, number)
        below = child.node.unfiltered
        if below is not child.node and role.is_primary:
            self.filename = below.exact_filename  # names inside an image are relative to where it really lies
        self.filename = self.filename or child.node.exact_filename
        return child

    def _name_child(self, role: Role, filename: str) -> None:
        """Put the name of a child, as the caller gave it, where its options are. Raises: OptionError."""
        given = self.options.take(str(role), {})
        named = to_options(filename)
        if "filename" in named and role is not Role.TEST:
            named = {"driver": protocol_of(filename).name, "filename": strip_protocol(filename)}
        self.options.put(str(role), named | dict(given) if isinstance(given, Mapping) else given)

    async def _open(self, role: Role, perm: int, shared: int, number: int | None = None) -> Child:
        key = str(role) if number is None else f"{role}.{number}"
        described = self.options.take(key)
        if not isinstance(described, Mapping):
            what = f"Cannot find device='{described}' nor node-name='{described}'"
            if described is None:
                what = f'A block device must be specified for "{key}"'
            raise OptionError(what, option=key)
        # What is compared with the raw copy is an image, of any format.
        place = self.place._replace(perm=perm, shared=shared, protocol=role not in (Role.TEST, Role.CHILDREN))
        # Zeroes are looked for once, at the top.
        opened = await self._open_node(dict(described), replace(self.settings, detect_zeroes="off"), place)
        identity = opened.driver.identity
        if role is Role.DATA_FILE and identity is not None and self.node.file is not None:
            if identity == self.node.file.node.driver.identity:
                await self._close_node(opened)
                raise InvalidImage("The data file is the image itself", filename=self.filename)
        elif identity is not None and identity in self.place.layers:
            # Before the locks are asked for: a layer that is written would be said to be in use, by this very graph.
            await self._close_node(opened)
            raise InvalidImage("The chain of backing files is a loop", filename=self.filename)
        return await self._attach(role, key, opened, perm, shared)

    async def _attach(self, role: Role, key: str, opened: BlockNode, perm: int, shared: int) -> Child:
        child = Child(self.node, role, opened, perm, shared)
        try:
            await attach(child)
        except BaseException:
            await self._close_node(opened)
            raise
        self.node.children[key] = child
        if role is Role.BACKING:
            self.node.backing = child
        elif role.is_primary:
            self.node.file = child
        return child

    async def open_inner(self, role: Role, name: InnerName | None) -> Child | None:
        given = str(role) in self.options
        if role is Role.DATA_FILE:
            return await self._open_data_file(name, given)
        described = self.options.take(str(role), {})
        if role is Role.BACKING:
            self.node.backing_name = name
            self.backing_overridden = given
        self.plain = self.plain and not given
        if described is None or described == "" or (not described and name is None) or not self.settings.backing:
            return None
        try:
            return await self._open_below(role, self._described(role, name, described))
        except (OSError, BlockError) as error:
            with_context(error, f"Could not open {role} file: ")
            raise

    async def _open_data_file(self, name: InnerName | None, given: bool) -> Child | None:
        """Guest data is the node's own, and written as the node is; the file that holds it is no image itself."""
        self.plain = self.plain and not given
        if given or name is not None:
            described = self.options.take(str(Role.DATA_FILE), {})
            if described is None:
                return None
            self.options.put(str(Role.DATA_FILE), self._described(Role.DATA_FILE, name, described))
            return await self.open_child(Role.DATA_FILE)
        return None

    def _described(self, role: Role, name: InnerName | None, given: object) -> dict[str, Any]:
        """The options of an inner file: those that the caller gave, over those that the name in the image means."""
        if not isinstance(given, Mapping):
            raise OptionError(f"Cannot find device='{given}' nor node-name='{given}'", option=str(role))
        options = dict(given)
        if name is None:
            return options
        if not ({"file", "filename"} & options.keys()):
            return trusted(self.filename, role, name, self.settings.trust) | options
        if name.format is not None:
            options.setdefault("driver", name.format)
        return options

    async def _open_below(self, role: Role, described: dict[str, Any]) -> Child:
        """Open the next layer of the chain."""
        assert self._driver is not None
        if self.place.depth >= self.settings.max_depth:
            raise InvalidImage(
                f"The chain of backing files is longer than {self.settings.max_depth} layers", filename=self.filename
            )
        perm, shared = child_permissions(self._driver, role, self.place.perm, self.place.shared, writable=False)
        mine = self.node.file.node.driver.identity if self.node.file is not None else None
        place = Place(perm, shared, False, layers=(*self.place.layers, mine), depth=self.place.depth + 1)
        settings = replace(self.settings, detect_zeroes="off")
        # Each layer in a task of its own: the stack of one would not hold a long chain.
        opened = await cancelled_once(self._open_node(described, settings, place), self._close_node)
        return await self._attach(role, str(role), opened, perm, shared)
