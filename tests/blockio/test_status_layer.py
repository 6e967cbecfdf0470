"""One layer: every step by which a driver's answer becomes the layer's; see docs/block-status.md."""

import asyncio
import errno

import pytest

from aioblock.base.errors import NotSupported
from aioblock.base.flags import ALLOCATED, COMPRESSED, DATA, EOF, OFFSET_VALID, RAW, RECURSE, ZERO
from aioblock.core.io import Status
from tests.kit.scripted import Script, opened
from tests.kit.watching import assert_idle, until

K = 1024


async def ask(script: Script, offset: int, nbytes: int, want_zero: bool = True, **how: Script) -> tuple[int, int, int]:
    """Flags, length and map; of a chain where `backing` is given."""
    below = [how["backing"]] if "backing" in how else []
    files = {script: how["file"]} if "file" in how else None
    async with opened(script, *below, files=files) as disk:
        answer = await disk.block_status(offset, nbytes, want_zero)
        assert_idle(disk)
        return answer[:3]


def asked(script: Script) -> list[tuple[int, int]]:
    return [call.where for call in script.calls("block_status")]


# -- 1: past the end, and nothing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [64 * K, 64 * K + 1, 1 << 40])
async def test_at_and_past_the_end_there_is_only_eof(offset: int) -> None:
    script = Script(64 * K, [(DATA, 64 * K)])
    assert await ask(script, offset, 100) == (EOF, 0, 0)
    assert await ask(script, offset, 0) == (EOF, 0, 0)
    assert not asked(script)


async def test_a_question_about_nothing() -> None:
    script = Script(64 * K, [(DATA, 64 * K)])
    assert await ask(script, 5, 0) == (0, 0, 0)
    assert not asked(script)


@pytest.mark.parametrize(("offset", "nbytes"), [(-1, 10), (0, -1), (1 << 63, 1), ((1 << 63) - 10, 10)])
async def test_ranges_that_no_file_can_have_are_errors(offset: int, nbytes: int) -> None:
    with pytest.raises(OSError) as caught:
        await ask(Script(64 * K, [(DATA, 64 * K)]), offset, nbytes)
    assert caught.value.errno == errno.EIO


# -- 2: the end of the layer ----------------------------------------------------------------------------------------


async def test_the_question_is_cut_to_the_layer() -> None:
    script = Script(64 * K, [(DATA, 64 * K)])
    assert await ask(script, 60 * K, 1 << 40) == (DATA | ALLOCATED | EOF, 4 * K, 0)
    assert asked(script) == [(60 * K, 4 * K)]


# -- 3: drivers that cannot tell ------------------------------------------------------------------------------------


async def test_a_format_that_cannot_tell_is_all_data() -> None:
    script = Script(64 * K, lacks=["block_status", "extents"])
    flags, pnum, _ = await ask(script, 10, 100)
    assert (flags, pnum) == (DATA | ALLOCATED, 100)


async def test_a_protocol_that_cannot_tell_is_all_data_where_it_lies() -> None:
    script = Script(64 * K, lacks=["block_status", "extents"])
    async with opened(options={"driver": "scripted-protocol", "script": script}) as disk:
        assert await disk.block_status(10, 100) == Status(DATA | ALLOCATED | OFFSET_VALID, 100, 10)
        assert await disk.block_status(60 * K, 8 * K) == Status(
            DATA | ALLOCATED | OFFSET_VALID | EOF, 4 * K, 60 * K, None
        )
        chain = await disk.block_status_above(None, 10, 100)
        assert chain == (DATA | ALLOCATED | OFFSET_VALID, 100, 10, disk.node, 1)


async def test_a_driver_that_cannot_tell_of_this_image_is_as_one_that_never_can() -> None:
    def refuse(offset: int, nbytes: int, want_zero: bool) -> tuple[int, int]:
        raise NotSupported

    assert await ask(Script(64 * K, refuse), 10, 100) == (DATA | ALLOCATED, 100, 0)


# -- 4: alignment, and answers of any length ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "nbytes", "question"),
    [(0, 512, (0, 512)), (511, 2, (0, 1024)), (513, 1, (512, 512)), (1024, 513, (1024, 1024))],
)
async def test_the_question_is_aligned_outwards_and_the_answer_cut_back(
    offset: int, nbytes: int, question: tuple[int, int]
) -> None:
    script = Script(64 * K, [(DATA | OFFSET_VALID, 64 * K, 1 << 20)], limits={"request_alignment": 512})
    file = Script(2 << 20, [(DATA, 2 << 20)])
    answer = await ask(script, offset, nbytes, file=file)
    assert answer == (DATA | OFFSET_VALID | ALLOCATED, nbytes, (1 << 20) + offset)
    assert asked(script) == [question]


async def test_an_answer_for_less_is_cut_by_what_was_asked_before_the_offset() -> None:
    script = Script(64 * K, [(ZERO, 1024), (DATA, 63 * K)], limits={"request_alignment": 512})
    assert await ask(script, 700, 4096) == (ZERO | ALLOCATED, 324, 0)


async def test_an_answer_for_more_is_cut_to_the_question() -> None:
    script = Script(64 * K, [(DATA, 64 * K)])
    assert await ask(script, 100, 50) == (DATA | ALLOCATED, 50, 0)


async def test_an_answer_for_more_than_the_layer_has_is_cut_to_the_layer() -> None:
    script = Script(64 * K, lambda offset, nbytes, want_zero: (DATA, 1 << 40))
    assert await ask(script, 60 * K, 64 * K) == (DATA | ALLOCATED | EOF, 4 * K, 0)


async def test_an_answer_for_less() -> None:
    script = Script(64 * K, [(DATA, 64 * K)])
    script.most = 100
    assert await ask(script, 0, 4096) == (DATA | ALLOCATED, 100, 0)


@pytest.mark.parametrize("pnum", [0, -1, 512])
async def test_an_answer_for_nothing_of_the_question_is_the_drivers_fault(pnum: int) -> None:
    script = Script(64 * K, lambda *_: (DATA, pnum), limits={"request_alignment": 1024})
    with pytest.raises(AssertionError, match="scripted"):
        await ask(script, 600, 100)


async def test_an_aligned_question_may_reach_past_an_unaligned_end() -> None:
    script = Script(1000, lambda *_: (DATA, 1024), limits={"request_alignment": 512})
    assert await ask(script, 600, 1000) == (DATA | ALLOCATED | EOF, 400, 0)
    assert asked(script) == [(512, 512)]


# -- 5: RAW ---------------------------------------------------------------------------------------------------------


async def test_raw_is_the_answer_of_the_child_where_it_lies_there() -> None:
    script = Script(64 * K, [(RAW | OFFSET_VALID, 64 * K, 4 * K)])
    file = Script(1 << 20, [(DATA | OFFSET_VALID, 8 * K, 0), (ZERO, (1 << 20) - 8 * K)])
    async with opened(script, files={script: file}) as disk:
        answer = await disk.block_status(0, 64 * K)
        assert answer[:3] == (DATA | OFFSET_VALID | ALLOCATED, 4 * K, 4 * K)
        assert answer.file is disk.node.file
        chain = await disk.block_status_above(None, 0, 64 * K)
        assert disk.node.file is not None and chain.file is disk.node.file.node
        assert (await disk.block_status(4 * K, 60 * K))[:2] == (ZERO | ALLOCATED | EOF, 60 * K)
        assert_idle(disk)
    assert asked(file) == [(4 * K, 64 * K), (4 * K, 64 * K), (8 * K, 60 * K)]


async def test_the_end_of_the_child_is_not_the_end_of_the_layer() -> None:
    script = Script(64 * K, [(RAW | OFFSET_VALID, 64 * K, 0)])
    file = Script(16 * K, [(DATA, 16 * K)])
    assert (await ask(script, 0, 64 * K, file=file))[:2] == (DATA | ALLOCATED, 16 * K)
    assert (await ask(script, 16 * K, 64 * K, file=file))[:2] == (ZERO | ALLOCATED | EOF, 48 * K)


async def test_what_the_child_leaves_open_stays_open() -> None:
    """A filter over a layer that decides nothing decides nothing, and what reads as zeroes without it stays so."""
    low = Script(64 * K, [(DATA, 64 * K)])
    mid = Script(64 * K, [(0, 64 * K)])
    options = {"driver": "scripted-filter", "script": Script(0), "file": {"driver": "scripted", "script": mid}}
    async with opened(options=options | {}) as disk:
        assert (await disk.block_status(0, 64 * K))[:2] == (ZERO | EOF, 64 * K)
    options["file"]["backing"] = {"driver": "scripted", "script": low}  # type: ignore[index]
    async with opened(options=options) as disk:
        assert (await disk.block_status(0, 64 * K))[:2] == (EOF, 64 * K)
        chain = await disk.block_status_above(None, 0, 64 * K)
        assert (chain.flags, chain.pnum, chain.depth) == (DATA | ALLOCATED | EOF, 64 * K, 2)


async def test_an_error_of_the_child_that_has_the_answer_is_an_error() -> None:
    script = Script(64 * K, [(RAW | OFFSET_VALID, 64 * K, 0)])
    file = Script(64 * K, [(DATA, 64 * K)])
    file.fail("block_status", OSError(errno.EIO, "broken"))
    with pytest.raises(OSError, match="broken"):
        await ask(script, 0, 64 * K, file=file)


# -- 6: who decides -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("want_zero", [True, False])
@pytest.mark.parametrize("flags", [DATA, ZERO, DATA | COMPRESSED, DATA | ZERO])
async def test_data_and_zeroes_are_decided_here(flags: int, want_zero: bool) -> None:
    backing = Script(64 * K, [(DATA, 64 * K)])
    script = Script(64 * K, [(flags, 64 * K)])
    assert await ask(script, 0, 4 * K, want_zero, backing=backing) == (flags | ALLOCATED, 4 * K, 0)


@pytest.mark.parametrize("want_zero", [True, False])
async def test_without_a_backing_file_what_is_left_open_reads_as_zeroes_and_is_not_allocated(want_zero: bool) -> None:
    assert await ask(Script(64 * K, [(0, 64 * K)]), 0, 4 * K, want_zero) == (ZERO, 4 * K, 0)


async def test_a_driver_that_has_no_backing_files_leaves_it_open() -> None:
    script = Script(64 * K, [(0, 64 * K)], attributes={"supports_backing": False})
    assert await ask(script, 0, 4 * K) == (0, 4 * K, 0)


@pytest.mark.parametrize(
    ("offset", "want_zero", "flags"),
    [
        (16 * K - 1, True, 0),  # the run is not cut at the end of the backing file: only its beginning counts
        (16 * K, True, ZERO),
        (40 * K, True, ZERO),
        (16 * K, False, 0),  # that is not asked
    ],
)
async def test_behind_the_end_of_the_backing_file(offset: int, want_zero: bool, flags: int) -> None:
    script = Script(64 * K, [(0, 64 * K)])
    backing = Script(16 * K, [(DATA, 16 * K)])
    assert await ask(script, offset, 4 * K, want_zero, backing=backing) == (flags, 4 * K, 0)
    assert not asked(backing)


# -- 7: RECURSE -----------------------------------------------------------------------------------------------------

INSIDE = DATA | OFFSET_VALID | RECURSE


async def test_holes_in_the_file_under_allocated_data_read_as_zeroes() -> None:
    script = Script(64 * K, [(INSIDE, 64 * K, 4 * K)])
    file = Script(1 << 20, [(DATA, 8 * K), (ZERO, (1 << 20) - 8 * K)])
    shown = DATA | OFFSET_VALID | ALLOCATED
    assert await ask(script, 0, 32 * K, file=file) == (shown, 4 * K, 4 * K)
    assert await ask(script, 4 * K, 32 * K, file=file) == (shown | ZERO, 32 * K, 8 * K)
    assert asked(file) == [(4 * K, 32 * K), (8 * K, 32 * K)]


async def test_who_does_not_ask_for_zeroes_costs_no_question_below() -> None:
    script = Script(64 * K, [(INSIDE, 64 * K, 4 * K)])
    file = Script(1 << 20, [(ZERO, 1 << 20)])
    assert (await ask(script, 0, 32 * K, False, file=file))[0] == DATA | OFFSET_VALID | ALLOCATED
    assert not asked(file)


@pytest.mark.parametrize("flags", [ZERO | OFFSET_VALID | RECURSE, DATA | RECURSE, DATA | OFFSET_VALID])
async def test_only_data_with_an_offset_that_asks_for_it_is_looked_into(flags: int) -> None:
    script = Script(64 * K, [(flags, 64 * K, 4 * K)])
    file = Script(1 << 20, [(ZERO, 1 << 20)])
    assert (await ask(script, 0, 32 * K, file=file))[:2] == (flags & ~RECURSE | ALLOCATED, 32 * K)
    assert not asked(file)


async def test_errors_of_the_file_are_ignored_there() -> None:
    script = Script(64 * K, [(INSIDE, 64 * K, 4 * K)])
    file = Script(1 << 20, [(ZERO, 1 << 20)])
    file.fail("block_status", OSError(errno.EIO, "broken"))
    assert (await ask(script, 0, 32 * K, file=file))[:2] == (DATA | OFFSET_VALID | ALLOCATED, 32 * K)
    assert len(asked(file)) == 1


async def test_an_offset_that_no_file_can_have_is_ignored_there() -> None:
    script = Script(64 * K, [(INSIDE, 64 * K, (1 << 63) - 4 * K)])
    file = Script(1 << 20, [(ZERO, 1 << 20)])
    assert (await ask(script, 0, 32 * K, file=file))[:2] == (DATA | OFFSET_VALID | ALLOCATED, 32 * K)


async def test_behind_the_end_of_the_file_the_whole_run_is_zeroes() -> None:
    script = Script(64 * K, [(INSIDE, 64 * K, 0)])
    file = Script(16 * K, [(DATA, 12 * K), (ZERO, 4 * K)])
    shown = DATA | OFFSET_VALID | ALLOCATED
    assert (await ask(script, 16 * K, 32 * K, file=file))[:2] == (shown | ZERO, 32 * K)  # pnum 0, EOF
    assert (await ask(script, 12 * K, 32 * K, file=file))[:2] == (shown | ZERO, 32 * K)  # ZERO, EOF: its own length
    assert (await ask(script, 8 * K, 32 * K, file=file))[:2] == (shown, 4 * K)


async def test_data_up_to_the_end_of_the_file_cuts_the_run_there() -> None:
    script = Script(64 * K, [(INSIDE, 64 * K, 0)])
    file = Script(16 * K, [(DATA, 16 * K)])
    assert (await ask(script, 8 * K, 32 * K, file=file))[:2] == (DATA | OFFSET_VALID | ALLOCATED, 8 * K)


# -- 8: EOF ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("nbytes", "flags"), [(4 * K, EOF), (4 * K - 1, 0), (5 * K, EOF)])
async def test_eof_where_the_run_ends_with_the_layer(nbytes: int, flags: int) -> None:
    script = Script(64 * K, [(DATA, 64 * K)])
    assert (await ask(script, 60 * K, nbytes))[0] == DATA | ALLOCATED | flags


async def test_a_drivers_own_eof_and_recurse_do_not_come_through() -> None:
    script = Script(64 * K, [(DATA | EOF | RECURSE, 64 * K)])
    assert await ask(script, 0, 4 * K) == (DATA | ALLOCATED, 4 * K, 0)


# -- lengths that change --------------------------------------------------------------------------------------------


async def test_a_length_that_may_change_is_asked_again() -> None:
    script = Script(64 * K, [(DATA, 1 << 20)], attributes={"variable_length": True})
    async with opened(script) as disk:
        script.length = 128 * K
        assert await disk.block_status(64 * K, 1 << 20) == (DATA | ALLOCATED | EOF, 64 * K, 0, None)
        script.length = 32 * K
        assert await disk.block_status(64 * K, 1 << 20) == (EOF, 0, 0, None)


async def test_asking_for_the_length_is_counted_in_flight() -> None:
    script = Script(64 * K, [(DATA, 64 * K)], attributes={"variable_length": True})
    async with opened(script) as disk:
        script.hold("getlength")
        asking = asyncio.create_task(disk.block_status(0, 4 * K))
        await until(lambda: script.held)
        assert disk.node.in_flight == 1
        script.release()
        assert (await asking).pnum == 4 * K
        assert_idle(disk)
