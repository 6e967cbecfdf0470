"""convert(offload=, level=): what it hands on, and what it refuses."""

import pytest

import aioblock
from aioblock.graph.backend import BlockBackend
from tests.kit.model import pattern

SIZE = 1 << 20


@pytest.fixture
def source(tmp_path):
    """A raw file that compresses somewhat."""
    path = tmp_path / "source"
    path.write_bytes((b"some words, and " * 16 + pattern(256, 1)) * (SIZE // 512))
    return path


async def test_data_is_copied_by_the_storage(tmp_path, source, monkeypatch):
    monkeypatch.setattr(BlockBackend, "readinto", None)  # nothing is read
    target = tmp_path / "target"
    await aioblock.convert(source, target, source_format="raw", offload=True)
    assert target.read_bytes() == source.read_bytes()


async def test_a_new_image_is_compressed_as_hard_as_is_asked(tmp_path, source):
    target = tmp_path / "target"
    sizes = []
    for level in (1, 9):
        how = {"format": "qcow2", "source_format": "raw", "compressed": True}
        await aioblock.convert(source, target, level=level, **how)
        sizes.append(target.stat().st_size)
        async with await aioblock.open(target, format="qcow2") as disk:
            assert await disk.pread(0, SIZE) == source.read_bytes()
    assert sizes[0] != sizes[1]


async def test_the_level_of_an_open_image_is_its_own_option(tmp_path, source):
    target = tmp_path / "target"
    await aioblock.create(target, "qcow2", {"size": SIZE})
    async with await aioblock.open(target, format="qcow2", writable=True) as out:
        with pytest.raises(ValueError, match="for a target that is made"):
            await aioblock.convert(source, out, source_format="raw", level=1)


async def test_a_level_that_there_is_not_leaves_no_target_behind(tmp_path, source):
    target = tmp_path / "target"
    with pytest.raises(aioblock.OptionError, match="between 1 and 9"):
        await aioblock.convert(source, target, format="qcow2", source_format="raw", compressed=True, level=10)
    assert not target.exists()
