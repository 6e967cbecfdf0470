"""Dirty bitmaps next to a plain model: a set of units."""

import random

import pytest

from aioblock.base.errors import BitmapError
from aioblock.core import dirty_bitmap
from aioblock.core.dirty_bitmap import CHUNK, DirtyBitmap, default_granularity, mark


def bits(first, end):
    """A number with the bits from `first` up to `end` set."""
    return (1 << max(end, first)) - (1 << first)


def units_of(bitmap):
    """The units that its ranges cover, as a number: bit n for unit n."""
    found = 0
    for offset, nbytes in bitmap.ranges():
        assert nbytes > 0
        assert offset % bitmap.granularity == 0
        assert offset + nbytes <= bitmap.length
        assert nbytes % bitmap.granularity == 0 or offset + nbytes == bitmap.length
        first = offset // bitmap.granularity
        units = bits(first, first - -nbytes // bitmap.granularity)
        assert not units & found
        found |= units
    return found


def touched(granularity, offset, nbytes, length):
    end = min(offset + nbytes, length)
    return bits(offset // granularity, -(-end // granularity)) if offset < end else 0


@pytest.mark.parametrize("seed", range(12))
def test_like_a_set_of_units(monkeypatch, seed):
    chance = random.Random(seed)
    monkeypatch.setattr(dirty_bitmap, "STEP", 1)
    granularity = 512 << chance.randrange(4)
    length = chance.choice((1, 5, 100, 40000, 200000)) * granularity - chance.choice((0, 0, 100))
    bitmap, model = DirtyBitmap("b", granularity, length), 0
    for _ in range(60):
        kind = chance.choice(("set", "set", "set", "clear", "truncate", "merge", "reload", "all"))
        offset = chance.randrange(length)
        nbytes = chance.choice((0, 1, granularity, chance.randrange(length), 8 * CHUNK * granularity))
        if kind == "set":
            bitmap.set(offset, nbytes)
            model |= touched(granularity, offset, nbytes, length)
        elif kind == "clear":
            bitmap.clear(offset, nbytes)
            model &= ~touched(granularity, offset, nbytes, length)
        elif kind == "all" and chance.random() < 0.2:
            bitmap.clear()
            model = 0
        elif kind == "truncate" and chance.random() < 0.5:
            length = max(1, length + chance.choice((-1, 1)) * nbytes // 3)
            bitmap.truncate(length)
            model &= bits(0, -(-length // granularity))
        elif kind == "merge":
            other = DirtyBitmap("o", 512 << chance.randrange(5), length)
            for _ in range(3):
                other.set(chance.randrange(length), chance.randrange(1, length + 1))
            bitmap.merge(other)
            for start, count in other.ranges():
                model |= touched(granularity, start, count, length)
        elif kind == "reload":
            copy = DirtyBitmap("c", granularity, length)
            size = chance.choice((512, 1024, CHUNK, 2 * CHUNK))
            dirty = list(bitmap.dirty_pieces(size))
            assert dirty == [
                number
                for number in range(-(-bitmap.packed_bytes // size))
                if model & bits(8 * size * number, 8 * size * (number + 1))
            ]
            for number in dirty:
                copy.unpack(number * size, bitmap.packed(number * size, size))
            assert not copy.changed
            bitmap = copy
        assert units_of(bitmap) == model
        assert bitmap.packed(0, bitmap.packed_bytes) == model.to_bytes(bitmap.packed_bytes, "little")
        last = -(-length // granularity) - 1
        assert bitmap.count() == model.bit_count() * granularity - (model >> last & 1) * (-length % granularity)
        some = chance.randrange(length)
        assert bitmap.is_dirty(some) == bool(model >> some // granularity & 1)


def test_neighbouring_runs_are_one_across_chunks():
    bitmap = DirtyBitmap("b", 512, 1 << 30)
    edge = 8 * CHUNK * 512
    bitmap.set(edge - 512, 1024)
    bitmap.set(3 * edge, 2 * edge)
    bitmap.set(5 * edge, 1)
    assert list(bitmap.ranges()) == [(edge - 512, 1024), (3 * edge, 2 * edge + 512)]


def test_a_disk_of_many_terabytes_costs_what_is_written():
    bitmap = DirtyBitmap("b", 512, 1 << 50)
    bitmap.set(1 << 49, 4096)
    bitmap.set(0, 64 << 30)
    assert len(bitmap._chunks) == 1 + (64 << 30) // (8 * CHUNK * 512)
    assert len({id(chunk) for chunk in bitmap._chunks.values()}) == 2
    assert bitmap.count() == (64 << 30) + 4096
    bitmap.clear(1, 1 << 49)
    assert list(bitmap.ranges()) == [((1 << 49) + 512, 4096 - 512)]


def test_bits_behind_the_end_are_never_taken():
    bitmap = DirtyBitmap("b", 512, 5 * 512)
    bitmap.unpack(0, b"\xff" * 64)
    assert bitmap.packed(0, 2) == b"\x1f\0"
    assert bitmap.count() == 5 * 512
    bitmap.truncate(20 * 512)
    assert list(bitmap.ranges()) == [(0, 5 * 512)]


def test_what_is_grown_after_it_was_cut_is_clean():
    bitmap = DirtyBitmap("b", 65536, 1 << 20)
    bitmap.set(0, 1 << 20)
    bitmap.truncate(100000)
    assert bitmap.changed
    assert list(bitmap.ranges()) == [(0, 100000)]
    bitmap.truncate(1 << 20)
    assert list(bitmap.ranges()) == [(0, 131072)]


@pytest.mark.parametrize("granularity", [0, 256, 513, 768, 1 << 32, -512])
def test_granularity(granularity):
    with pytest.raises(BitmapError, match="Granularity must be power of 2 and at least 512") as caught:
        DirtyBitmap("b", granularity, 1 << 20)
    assert caught.value.name == "b"


def test_default_granularity():
    assert [default_granularity(size) for size in (None, 512, 4096, 16384, 65536, 2 << 20)] == [
        65536,
        4096,
        4096,
        16384,
        65536,
        65536,
    ]


def test_merge_asks_for_the_same_length():
    with pytest.raises(BitmapError, match=r"\(destination size is 1024, source size is 2048\) and can't be merged"):
        DirtyBitmap("a", 512, 1024).merge(DirtyBitmap("b", 512, 2048))


def test_merge_with_itself_changes_nothing():
    bitmap = DirtyBitmap("a", 512, 1024)
    bitmap.set(0, 1)
    bitmap.changed = False
    bitmap.merge(bitmap)
    assert not bitmap.changed
    assert list(bitmap.ranges()) == [(0, 512)]


def test_merge_copies():
    first, second = DirtyBitmap("a", 512, 4096), DirtyBitmap("b", 512, 4096)
    second.set(0, 1)
    first.merge(second)
    first.set(1024, 1)
    assert list(second.ranges()) == [(0, 512)]


def test_content_that_was_not_loaded_is_not_shown():
    bitmap = DirtyBitmap("a", 512, 4096)
    bitmap.loaded = False
    other = DirtyBitmap("b", 512, 4096)
    for look in (bitmap.count, lambda: list(bitmap.ranges()), lambda: bitmap.is_dirty(0), lambda: other.merge(bitmap)):
        with pytest.raises(BitmapError, match="was not loaded"):
            look()


def test_mark_passes_over_what_does_not_record():
    bitmaps = [
        DirtyBitmap("on", 512, 4096),
        DirtyBitmap("off", 512, 4096, enabled=False),
        DirtyBitmap("broken", 512, 4096, inconsistent=True),
    ]
    mark(bitmaps, 512, 512)
    assert [bitmap.changed for bitmap in bitmaps] == [True, False, False]
    mark(bitmaps, 4096, 100)
    assert list(bitmaps[0].ranges()) == [(512, 512)]
    mark(bitmaps, 4096, 100, grows=True)
    assert list(bitmaps[0].ranges()) == [(512, 512), (4096, 100)]


def test_repr():
    bitmap = DirtyBitmap("a", 512, 4096, persistent=True)
    assert repr(bitmap) == "<DirtyBitmap 'a' enabled persistent granularity=512 length=4096>"
