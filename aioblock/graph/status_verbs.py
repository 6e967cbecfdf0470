"""StatusVerbs: what a backend answers about what is in its bytes, run by run, or for whole ranges at once."""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from aioblock.blockio.contexts import context_runs
from aioblock.blockio.status import block_status, block_status_above, is_zero
from aioblock.core.io import ChainStatus, ContextRuns, Status
from aioblock.core.node import BlockNode
from aioblock.core.statistics import Statistics
from aioblock.graph.extent import Extent, merged

if TYPE_CHECKING:
    from aioblock.blockio.extents import ChainExtents

__all__ = ["StatusVerbs"]


class StatusVerbs(ABC):
    """The part of `BlockBackend` that concerns block status. A cancelled question leaves nothing behind."""

    node: BlockNode
    statistics: Statistics
    _window: int

    @abstractmethod
    async def _enter(self) -> None: ...

    @abstractmethod
    def _leave(self) -> None: ...

    @abstractmethod
    async def _give_way(self) -> None: ...

    async def block_status(self, offset: int, nbytes: int, want_zero: bool = True) -> Status:
        """What is in the run at `offset`, in the top layer alone. Raises: OSError."""
        await self._enter()
        try:
            self.statistics.status += 1
            found = await block_status(self.node, offset, nbytes, want_zero)
        finally:
            self._leave()
        await self._give_way()
        return found

    async def block_status_above(
        self,
        base: BlockNode | None,
        offset: int,
        nbytes: int,
        *,
        include_base: bool = False,
        want_zero: bool = True,
    ) -> ChainStatus:
        """What is in the run at `offset`, and which layer from the top down to `base` decides it. Raises: OSError."""
        await self._enter()
        try:
            self.statistics.status += 1
            found = await block_status_above(
                self.node,
                base,
                offset,
                nbytes,
                include_base=include_base,
                want_zero=want_zero,
                window=self._window,
                statistics=self.statistics,
            )
        finally:
            self._leave()
        await self._give_way()
        return found

    async def is_zero(self, offset: int, nbytes: int) -> bool:
        """Whether a range is known to read as zeroes through the whole chain. Raises: OSError."""
        await self._enter()
        try:
            zero = await is_zero(self.node, offset, nbytes, statistics=self.statistics)
        finally:
            self._leave()
        await self._give_way()
        return zero

    async def context_runs(
        self, offset: int, nbytes: int, names: Sequence[str] | None = None
    ) -> dict[str, ContextRuns]:
        """What the storage says in its metadata contexts (see the driver nbd), of all of them in a single request.

        For each of `names`, None: for all that it was opened with, the runs from `offset` on: at least one, up to any
        end in the range, each context to another. Only of storage itself, or through `raw` and filters.
        Raises: NotSupported where it has no such contexts; OSError.
        """
        await self._enter()
        try:
            self.statistics.status += 1
            found = await context_runs(self.node, offset, nbytes, names)
        finally:
            self._leave()
        await self._give_way()
        return found

    async def extent_batches(
        self,
        offset: int = 0,
        nbytes: int | None = None,
        *,
        top: BlockNode | None = None,
        base: BlockNode | None = None,
        include_base: bool = False,
        want_zero: bool = True,
    ) -> "AsyncGenerator[ChainExtents, None]":
        """What is in a whole range of the chain, as batches of NumPy arrays.

        `top`: the layer to begin with, one of `layers()` (None: the first); depths count from it, and the range ends
        where it ends. With `base` being the layer below it, that one layer is asked by itself.
        Raises: OSError.
        """
        from aioblock.blockio.extents import chain_extents  # brings numpy, which most programs never need

        batches = chain_extents(
            self.node if top is None else top,
            offset,
            nbytes,
            base=base,
            include_base=include_base,
            want_zero=want_zero,
            window=self._window,
            statistics=self.statistics,
        )
        async with aclosing(batches):
            while True:
                await self._enter()
                try:
                    batch = await anext(batches, None)
                finally:
                    self._leave()
                if batch is None:
                    return
                yield batch

    async def extents(
        self,
        offset: int = 0,
        nbytes: int | None = None,
        *,
        top: BlockNode | None = None,
        base: BlockNode | None = None,
        want_zero: bool = True,
    ) -> AsyncGenerator[Extent, None]:
        """What is in a whole range of the chain, run by run, neighbours that say the same merged. Raises: OSError.

        `top`, `base`: as in `extent_batches`.
        """
        async with aclosing(self.extent_batches(offset, nbytes, top=top, base=base, want_zero=want_zero)) as batches:
            async for extent in merged(batches):
                yield extent
