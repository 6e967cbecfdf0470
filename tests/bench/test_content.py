"""Content: no false alarm whatever overlaps, and every kind of damage is found and named."""

import errno
import random

import pytest

from aioblock import OptionError, VerifyError
from aioblock.bench.content import Content

BLOCK = 512
BLOCKS = 16
BEGIN = 4096


def content(**how) -> Content:
    return Content("disk", BEGIN, BEGIN + BLOCKS * BLOCK, [BLOCK, 2 * BLOCK], how.get("seed", 3))


class Disk:
    """The part of an image in memory, and requests one after the other."""

    def __init__(self, made: Content) -> None:
        self.made = made
        self.data = bytearray(random.Random(1).randbytes(BLOCKS * BLOCK))

    def do(self, kind: str, offset: int, nbytes: int = BLOCK) -> None:
        buffer = memoryview(bytearray(nbytes))
        begun = self.made.begins(kind, offset, nbytes, buffer if kind == "write" else None)
        self.effect(kind, offset, buffer)
        self.made.ends(kind, offset, nbytes, buffer if kind == "read" else None, begun)

    def effect(self, kind: str, offset: int, buffer: memoryview) -> None:
        at = offset - BEGIN
        if kind == "read":
            buffer[:] = self.data[at : at + len(buffer)]
        elif kind == "write":
            self.data[at : at + len(buffer)] = buffer
        elif kind == "zeroes":
            self.data[at : at + len(buffer)] = bytes(len(buffer))
        elif kind == "discard":
            self.data[at : at + len(buffer)] = b"\xee" * len(buffer)


def block(number: int) -> int:
    return BEGIN + number * BLOCK


def test_what_is_written_is_read():
    disk = Disk(content())
    disk.do("read", block(0), 2 * BLOCK)  # never written: anything
    disk.do("write", block(1), 2 * BLOCK)
    disk.do("read", block(0), 2 * BLOCK)
    disk.do("write", block(2))
    disk.do("read", block(2), 2 * BLOCK)
    disk.do("zeroes", block(1))
    disk.do("read", block(1), 2 * BLOCK)
    disk.do("discard", block(2))
    disk.do("read", block(1), 2 * BLOCK)
    disk.do("status", block(2))
    disk.do("flush", 0, 0)
    assert disk.made.written() == [(block(1), 2 * BLOCK)]


@pytest.mark.parametrize("seed", range(30))
def test_requests_that_overlap_in_time_raise_no_false_alarm(seed):
    """Each takes effect, block by block, at moments between its begin and its end."""
    rng = random.Random(seed)
    disk = Disk(content())
    running = []
    for _ in range(600):
        if len(running) < 8 and rng.random() < 0.5:
            kind = rng.choice(["read", "read", "write", "write", "zeroes", "discard"])
            blocks = rng.choice([1, 2])
            offset = block(rng.randrange(BLOCKS // blocks) * blocks)
            buffer = memoryview(bytearray(blocks * BLOCK))
            begun = disk.made.begins(kind, offset, len(buffer), buffer if kind == "write" else None)
            running.append((kind, offset, buffer, begun, list(range(blocks))))
        elif running:
            place = rng.randrange(len(running))
            kind, offset, buffer, begun, left = running[place]
            if left:
                at = left.pop(rng.randrange(len(left))) * BLOCK
                disk.effect(kind, offset + at, buffer[at : at + BLOCK])
            else:
                running.pop(place)
                disk.made.ends(kind, offset, len(buffer), buffer if kind == "read" else None, begun)


def damaged(change):
    """The message of what finds it: blocks 0 to 3 were written twice, then damaged, then read."""
    disk = Disk(content())
    for number in range(4):
        disk.do("write", block(number))
    old = bytes(disk.data)
    for number in range(4):
        disk.do("write", block(number))
    change(disk.data, old)
    with pytest.raises(VerifyError) as caught:
        disk.do("read", block(2), 2 * BLOCK)
    assert caught.value.errno == errno.EIO
    assert f"disk: offset {block(3)}: " in str(caught.value)
    return str(caught.value)


THIRD = slice(3 * BLOCK, 4 * BLOCK)


def flip(at):
    def change(data, old):
        data[3 * BLOCK + at] ^= 1

    return change


def put(make):
    def change(data, old):
        data[THIRD] = make(data, old)

    return change


def of_another_run(data, old):
    other = Disk(content(seed=4))
    for number in (0, 0, 0, 0, 0, 0, 0, 3):
        other.do("write", block(number))
    return other.data[THIRD]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (flip(BLOCK - 1), "write 8, but damaged from byte 504 of the block on, in place of write 8"),
        (flip(24), "write 8, but damaged from byte 24"),
        (put(lambda data, old: old[THIRD]), "write 4, which is older, in place of write 8"),
        (put(lambda data, old: data[:BLOCK]), f"what write 5 put at offset {block(0)}, in place of write 8"),
        (put(lambda data, old: bytes(BLOCK)), "zeroes, in place of write 8"),
        (put(lambda data, old: b"\x77" * BLOCK), "something that was not written here: 7777"),
        (put(of_another_run), "a block of another run (seed 4)"),
    ],
)
def test_damage_is_named(change, words):
    assert words in damaged(change)


def test_every_byte_counts():
    for at in range(BLOCK):
        damaged(flip(at))


def test_zeroes_and_discards_excuse_only_what_they_explain():
    disk = Disk(content())
    disk.do("write", block(0))
    disk.do("zeroes", block(0))
    disk.data[0] = 1
    with pytest.raises(VerifyError):
        disk.do("read", block(0))
    disk.do("discard", block(0))
    disk.do("read", block(0))
    disk.do("write", block(0))
    disk.data[:BLOCK] = bytes(BLOCK)  # the zeroes are of before the write
    with pytest.raises(VerifyError):
        disk.do("read", block(0))


def test_while_a_write_runs_the_old_and_the_new_are_right_and_afterwards_only_the_new():
    disk = Disk(content())
    disk.do("write", block(0))
    old = bytes(disk.data)
    buffer = memoryview(bytearray(BLOCK))
    begun = disk.made.begins("write", block(0), BLOCK, buffer)
    disk.do("read", block(0))
    disk.effect("write", block(0), buffer)
    disk.do("read", block(0))
    disk.made.ends("write", block(0), BLOCK, None, begun)
    disk.do("read", block(0))
    disk.data[:] = old
    with pytest.raises(VerifyError):
        disk.do("read", block(0))


def test_too_much_to_remember():
    with pytest.raises(OptionError, match="verify a part of"):
        Content("disk", 0, 1 << 50, [4096], 0)
