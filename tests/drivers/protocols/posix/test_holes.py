"""Runs of data and holes, and what is remembered of them."""

import errno
import os
from pathlib import Path

import pytest

from aioblock.base.flags import DATA, ZERO
from aioblock.drivers.protocols.posix import holes
from aioblock.drivers.protocols.posix.holes import DataRun, next_run, runs


class Sparse:
    """A file of which `data` are the ranges with data, as lseek sees it."""

    def __init__(self, size: int, *data: tuple[int, int]) -> None:
        self.size = size
        self.data = data

    def lseek(self, fd: int, offset: int, whence: int) -> int:
        if offset >= self.size:
            raise OSError(errno.ENXIO, "No such device or address")
        for start, end in self.data:
            if offset < end:
                if whence == os.SEEK_DATA:
                    return max(offset, start)
                return end if start <= offset else offset
        if whence == os.SEEK_DATA:
            raise OSError(errno.ENXIO, "No such device or address")
        return offset


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        (0, (ZERO, 100)),
        (50, (ZERO, 100)),
        (100, (DATA, 200)),
        (199, (DATA, 200)),
        (200, (ZERO, 300)),
        (300, (DATA, 1000)),
        (999, (DATA, 1000)),
        (1000, (ZERO, 1100)),
        (1001, (ZERO, 1100)),
    ],
)
def test_next_run(monkeypatch: pytest.MonkeyPatch, offset: int, expected: tuple[int, int]) -> None:
    monkeypatch.setattr(holes, "_lseek", Sparse(1000, (100, 200), (300, 1000)).lseek)
    assert next_run(3, offset, 1100) == expected


def test_a_hole_at_the_end_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holes, "_lseek", Sparse(1000, (100, 200)).lseek)
    assert next_run(3, 200, 1000) == (ZERO, 1000)
    assert next_run(3, 0, 50) == (ZERO, 50)


def test_a_hole_that_comes_into_being_between_the_two_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holes, "_lseek", lambda fd, offset, whence: offset)
    assert next_run(3, 10, 20) == (DATA, 20)


def test_other_errors_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int, offset: int, whence: int) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(holes, "_lseek", fail)
    with pytest.raises(OSError) as caught:
        next_run(3, 0, 10)
    assert caught.value.errno == errno.EINVAL


def test_runs_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holes, "_lseek", Sparse(1000, (100, 200), (300, 1000)).lseek)
    assert runs(3, 50, 900, 10) == [(ZERO, 50), (DATA, 100), (ZERO, 100), (DATA, 600)]
    assert runs(3, 50, 900, 2) == [(ZERO, 50), (DATA, 100)]
    assert runs(3, 900, 900, 2) == []


def test_what_is_remembered() -> None:
    run = DataRun()
    run.remember(10, 20, run.generation)
    assert repr(run) == "DataRun(10..20)"
    asked_at = run.generation
    run.forget()  # a hole is made while the question is under way
    run.remember(10, 20, asked_at)
    assert run.span == (0, 0)
    run.remember(10, 20, run.generation)
    assert run.span == (10, 20)


def test_a_real_file(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as file:
        file.truncate(1 << 20)
        os.pwrite(file.fileno(), b"x" * 65536, 65536)
        found = runs(file.fileno(), 0, 1 << 20, 100)
    assert sum(nbytes for _, nbytes in found) == 1 << 20
    if len(found) > 1:  # a filesystem may say that all is data
        assert found == [(ZERO, 65536), (DATA, 65536), (ZERO, (1 << 20) - 131072)]
