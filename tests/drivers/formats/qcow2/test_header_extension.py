"""Extensions changed in place: each state that a power cut can leave is an old header or a new one."""

import errno
import random
from itertools import chain, combinations

import pytest

from aioblock.drivers.formats.qcow2 import extensions as ext
from aioblock.drivers.formats.qcow2.extensions import Extension
from aioblock.drivers.formats.qcow2.header import Header, parse_header, serialise
from aioblock.drivers.formats.qcow2.header_extension import drop_extension, put_extension
from tests.kit.memory_io import MemoryIO

SECTOR = 512
VALUE = bytes(range(1, 25))
OTHER = bytes(range(101, 125))


class TornFile(MemoryIO):
    """A file that remembers, for each flush, what was stable before and the sectors that were written since."""

    def __init__(self, data):
        super().__init__(data)
        self.begun = bytes(data)
        self.pieces = []
        self.epochs = []

    async def pwrite(self, offset, data, flags=0):
        await super().pwrite(offset, data, flags)
        data = bytes(data)
        while data:
            length = SECTOR - offset % SECTOR
            self.pieces.append((offset, data[:length]))
            offset, data = offset + len(data[:length]), data[length:]

    async def flush(self):
        await super().flush()
        self.epochs.append((self.begun, self.pieces))
        self.begun, self.pieces = bytes(self.data), []

    def states(self):
        """Everything that may be found after a power cut."""
        assert not self.pieces, "the last write is not stable"
        for begun, pieces in self.epochs:
            assert len(pieces) <= 8
            for some in chain.from_iterable(combinations(pieces, count) for count in range(len(pieces) + 1)):
                content = bytearray(begun)
                for offset, data in some:
                    content[offset : offset + len(data)] = data
                yield bytes(content)
        yield bytes(self.data)


def an_image(cluster_bits, extensions, backing_file=None, header_length=112):
    header = Header(3, cluster_bits, 1 << 20, 1, 3 << cluster_bits, 1 << cluster_bits, 1)
    header.l1_size = header.l1_entries_needed
    header.header_length = header_length
    header.extensions = list(extensions)
    header.backing_file = backing_file
    return serialise(header)


def meaning(content):
    """What the header says, without where the name lies and what the value of the bitmaps extension is."""
    header = parse_header(content, "x", 1 << 30, True)
    kept = [extension for extension in header.extensions if extension.type not in (ext.BITMAPS, ext.FEATURE_NAMES)]
    has = any(extension.type == ext.BITMAPS for extension in header.extensions)
    return header.backing_file, header.l1_table_offset, header.header_length, kept, has


async def change(content, verb, *args):
    """Change the header; returns what was left, after a look at all that could have been left."""
    file = TornFile(content)
    header = parse_header(content, "x", 1 << 30, True)
    done = await verb(file, header, ext.BITMAPS, *args)
    after = bytes(file.data)
    allowed = (meaning(content), meaning(after))
    for state in file.states():
        assert meaning(state) in allowed
    assert header == parse_header(after, "x", 1 << 30, True)
    return after, done


async def put_change_drop(content):
    """All there is to do with one extension."""
    before = meaning(content)
    with_it, _ = await change(content, put_extension, VALUE)
    assert ext.find(parse_header(with_it, "x", 1 << 30, True).extensions, ext.BITMAPS) == VALUE
    assert meaning(with_it) == (*before[:4], True)
    other, _ = await change(with_it, put_extension, OTHER)
    assert ext.find(parse_header(other, "x", 1 << 30, True).extensions, ext.BITMAPS) == OTHER
    assert meaning(other) == (*before[:4], True)
    without, done = await change(other, drop_extension)
    assert done
    assert meaning(without) == before


def a_name(length):
    """A name that does not look the same when it is moved."""
    return "".join(chr(97 + number * number % 26) for number in range(length))


TABLE = ext.feature_table()


@pytest.mark.parametrize("cluster_bits", [12, 16])
@pytest.mark.parametrize("name", [None, "base.qcow2", a_name(1023)])
@pytest.mark.parametrize("form", [(), (Extension(ext.BACKING_FORMAT, b"qcow2"),)])
async def test_the_headers_that_create_writes(cluster_bits, name, form):
    await put_change_drop(an_image(cluster_bits, (*form, TABLE), name))


@pytest.mark.parametrize("fill", range(400, 480, 8))
async def test_around_the_end_of_the_first_sector(fill):
    for name in (None, "b"):
        await put_change_drop(an_image(16, [Extension(0x12345678, bytes(fill - 112 - 8))], name))


@pytest.mark.parametrize("name", [None, a_name(100)])
async def test_all_in_one_sector(name):
    await put_change_drop(an_image(9, [Extension(ext.BACKING_FORMAT, b"raw")], name))


@pytest.mark.parametrize("seed", range(60))
async def test_any_header(seed):
    chance = random.Random(seed)
    extensions = [Extension(0x1000 + number, bytes(chance.randrange(300))) for number in range(chance.randrange(4))]
    name = a_name(chance.choice((0, 1, 20, 200, 500))) or None
    header_length = chance.choice((104, 112, 120, 200))
    await put_change_drop(an_image(chance.choice((12, 13, 16)), extensions, name, header_length))


async def test_no_room_changes_nothing():
    for content in (
        an_image(9, [Extension(1, bytes(360))]),  # no room for the extension
        an_image(10, [Extension(1, bytes(100))], "n" * 600),  # no room for a second name
        an_image(9, [], "n" * 380),
    ):
        file = MemoryIO(content)
        header = parse_header(content, "x", 1 << 30, True)
        with pytest.raises(OSError, match="no room") as caught:
            await put_extension(file, header, ext.BITMAPS, VALUE)
        assert caught.value.errno == errno.ENOSPC
        assert file.calls("pwrite") == []
        assert header == parse_header(content, "x", 1 << 30, True)


async def test_one_that_the_feature_names_follow_can_go():
    content = an_image(16, [Extension(ext.BITMAPS, VALUE), TABLE], a_name(30))
    after, done = await change(content, drop_extension)
    assert done
    assert meaning(after) == (*meaning(content)[:4], False)


async def test_one_that_others_follow_stays_where_it_is():
    extensions = [TABLE, Extension(ext.BITMAPS, VALUE), Extension(7, bytes(500))]
    content = an_image(16, extensions)
    same, done = await change(content, drop_extension)
    assert not done
    assert same == content
    after, _ = await change(content, put_extension, OTHER)
    assert ext.find(parse_header(after, "x", 1 << 30, True).extensions, ext.BITMAPS) == OTHER


async def test_one_of_another_length_makes_way():
    content = an_image(16, [TABLE, Extension(ext.BITMAPS, b"junk")])
    bare, done = await change(content, drop_extension)
    assert done
    after, _ = await change(bare, put_extension, VALUE)
    file, header = MemoryIO(content), parse_header(content, "x", 1 << 30, True)
    await put_extension(file, header, ext.BITMAPS, VALUE)
    assert bytes(file.data) == after
