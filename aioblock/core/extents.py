"""A batch of block-status runs as NumPy arrays: what whole-range questions are answered in.

Imported only where such a question is asked: numpy costs more start-up time than `info` may take.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from aioblock.core.io import BlockIO, Status

__all__ = ["ExtentBatch"]


@dataclass(slots=True)
class ExtentBatch:
    """Runs that follow each other without a gap, beginning at `offset`. One entry a run in each array.

    `flags` as in `base.flags` (uint8); `map` counts only where OFFSET_VALID is set, and then means `files[which]`
    where `which` is the entry of the array `file_index` (-1: none).
    A driver that answers need not merge neighbours and need not set ALLOCATED or EOF: the generic code does.
    """

    offset: int
    lengths: npt.NDArray[np.int64]
    flags: npt.NDArray[np.uint8]
    map: npt.NDArray[np.int64]
    file_index: npt.NDArray[np.int8]
    files: "tuple[BlockIO, ...]" = ()

    @property
    def nbytes(self) -> int:
        """How many bytes the runs cover together."""
        return int(self.lengths.sum())

    @classmethod
    def of_runs(cls, offset: int, runs: "list[Status]") -> "ExtentBatch":
        """A batch of the given runs, for drivers and nodes that answer one run at a time."""
        files: list[BlockIO] = []
        index: list[int] = []
        for run in runs:
            if run.file is None:
                index.append(-1)
                continue
            if run.file not in files:
                files.append(run.file)
            index.append(files.index(run.file))
        return cls(
            offset,
            np.array([run.pnum for run in runs], np.int64),
            np.array([run.flags for run in runs], np.uint8),
            np.array([run.map for run in runs], np.int64),
            np.array(index, np.int8),
            tuple(files),
        )
