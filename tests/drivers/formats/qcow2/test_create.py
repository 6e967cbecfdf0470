"""Creating images: as QEMU makes them, byte for byte, and nothing that could be taken for an image before the end."""

import errno

import pytest

from aioblock.base.errors import OptionError
from aioblock.base.units import parse_size
from aioblock.drivers.formats.qcow2.create import create
from aioblock.drivers.formats.qcow2.create_options import CREATE_OPTIONS
from aioblock.drivers.formats.qcow2.header import MAGIC, parse_header
from tests.kit.memory_io import MemoryIO, fail_nth
from tests.kit.oracle import assert_clean, qemu_img, qemu_map, require

V3_ONLY = "(use version=v3 or greater)"
LARGER = "(try using a larger cluster size)"
KINDS = {option.name: option.kind for option in CREATE_OPTIONS}
READ = {"size": parse_size, "int": int, "bool": lambda text: text == "on", "str": str}


def values(text):
    """The options in `a=b,c=d`, each in its kind."""
    pairs = (pair.split("=") for pair in text.split(","))
    return {name: READ[KINDS[name]](value) for name, value in pairs}


async def made(text):
    file = MemoryIO()
    await create(file, values(text))
    return bytes(file.data)


async def compare_with_qemu(text, tmp_path):
    """Make the same image twice. Gives the paths of QEMU's and of ours."""
    require("qemu-img")
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-o", text, theirs)
    ours.write_bytes(await made(text))
    return theirs, ours


SAME = [
    "size=0",
    "size=1",
    "size=513",
    "size=1M",
    "size=1P",
    "size=1M,compat=0.10",
    "size=1M,compat=v3,lazy_refcounts=on",
    "size=1M,cluster_size=512",
    "size=1G,cluster_size=512",
    "size=4G,cluster_size=512",
    "size=1G,cluster_size=512,refcount_bits=64",
    "size=1G,cluster_size=2M",
    "size=1M,cluster_size=4k",
    "size=1M,cluster_size=8k",
    "size=1M,extended_l2=on",
    "size=1M,extended_l2=on,cluster_size=16k",
    "size=1M,backing_file=below,backing_fmt=raw",
    "size=1M,backing_file=below,backing_fmt=raw,cluster_size=512",
    "size=1M,backing_file=below,backing_fmt=qcow2,cluster_size=4k,compat=0.10",
    "size=1M,compression_type=zstd",
    *(f"size=1M,refcount_bits={1 << order}" for order in range(7)),
    "size=0,preallocation=metadata",
    "size=1M,preallocation=metadata",
    "size=1000K,preallocation=metadata",
    "size=256K,preallocation=metadata,cluster_size=512",
    "size=10M,preallocation=metadata,cluster_size=4k,refcount_bits=64",
    "size=20M,preallocation=metadata,cluster_size=16k,extended_l2=on",
    "size=1M,preallocation=metadata,extended_l2=on,backing_file=below,backing_fmt=raw",
    "size=1M,preallocation=falloc",
    "size=1000K,preallocation=falloc",
    "size=1M,preallocation=falloc,cluster_size=512",
    "size=1M,preallocation=full,cluster_size=512,refcount_bits=64",
    "size=10M,preallocation=full,cluster_size=4k",
    "size=10M,preallocation=falloc,cluster_size=16k,extended_l2=on",
]


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.parametrize("text", SAME)
async def test_byte_for_byte_as_qemu(text, tmp_path):
    theirs, ours = await compare_with_qemu(text, tmp_path)
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "size=34G,cluster_size=512",  # the refcount table has two clusters
        "size=0,preallocation=falloc",
        "size=1000K,preallocation=metadata,extended_l2=on",
        "size=3M,preallocation=metadata,cluster_size=512,refcount_bits=64",
    ],
)
async def test_other_bytes_but_clean_and_the_same_disk(text, tmp_path):
    theirs, ours = await compare_with_qemu(text, tmp_path)
    assert_clean(ours, "qcow2")
    # Where the data lies and which of it is a hole are not compared: the file in memory had no holes to give.
    assert [(run["start"], run["length"], run["present"]) for run in _merged(qemu_map(ours))] == [
        (run["start"], run["length"], run["present"]) for run in _merged(qemu_map(theirs))
    ]


def _merged(runs):
    found = []
    for run in runs:
        if found and found[-1]["present"] == run["present"]:
            found[-1]["length"] += run["length"]
        else:
            found.append(dict(run))
    return found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *(
            (f"size=1M,cluster_size={size}", "Cluster size must be a power of two between 512 and 2048k")
            for size in (0, 1, 256, 511, 513, 1000, "3M", "4M")
        ),
        *(
            (f"size=1M,refcount_bits={bits}", "Refcount width must be a power of two and may not exceed 64 bits")
            for bits in (-1, 0, 3, 128)
        ),
        (
            "size=1M,compat=0.10,refcount_bits=8",
            "Different refcount widths than 16 bits require compatibility level 1.1 or above " + V3_ONLY,
        ),
        (
            "size=1M,compat=0.10,lazy_refcounts=on",
            "Lazy refcounts only supported with compatibility level 1.1 and above " + V3_ONLY,
        ),
        (
            "size=1M,compat=0.10,extended_l2=on",
            "Extended L2 entries are only supported with compatibility level 1.1 and above " + V3_ONLY,
        ),
        (
            "size=1M,extended_l2=on,cluster_size=8k",
            "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes",
        ),
        ("size=1M,compression_type=foo", "Parameter 'compression-type' does not accept value 'foo'"),
        (
            "size=1M,compression_type=zstd,compat=0.10",
            "Non-zlib compression type is only supported with compatibility level 1.1 and above " + V3_ONLY,
        ),
        ("size=1M,compat=0.42", "Parameter 'version' does not accept value '0.42'"),
        ("size=1M,preallocation=foo", "Parameter 'preallocation' does not accept value 'foo'"),
        (
            "size=1M,preallocation=metadata,backing_file=x,backing_fmt=raw",
            "Backing file and preallocation can only be used at the same time if extended_l2 is on",
        ),
        ("size=1M,backing_fmt=raw", "Backing format cannot be used without backing file"),
        (
            "size=1M,backing_file=x,backing_fmt=aaaaaaaaaaaaaaaa",
            "Parameter 'backing-fmt' does not accept value 'aaaaaaaaaaaaaaaa'",
        ),
        ("size=1M,data_file_raw=on", "data-file-raw requires data-file"),
        (
            "size=1M,data_file=x,compat=0.10",
            "External data files are only supported with compatibility level 1.1 and above " + V3_ONLY,
        ),
        ("size=3P", "The image size is too large for file format 'qcow2' " + LARGER),
        (
            "size=129G,cluster_size=512",
            "The image size is too large for file format 'qcow2' " + LARGER,
        ),
    ],
)
@pytest.mark.oracle
async def test_options_refused_in_the_words_of_qemu(text, message, tmp_path):
    file = MemoryIO()
    with pytest.raises(OptionError) as caught:
        await create(file, values(text))
    assert str(caught.value) == message
    assert file.log == []
    require("qemu-img")
    path = tmp_path / "x"
    done = qemu_img("create", "-q", "-u", "-f", "qcow2", "-o", text, path, check=False)
    assert done.stderr == f"qemu-img: {path}: {message}\n"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({}, OptionError),
        ({"size": 512, "backing_file": ""}, OptionError),
        ({"size": 512, "backing_file": "a\nb"}, OptionError),
        ({"size": 512, "backing_file": "x" * 450, "cluster_size": 512}, OptionError),
        ({"size": 512, "encryption": True}, OptionError),
        ({"size": 512, "encrypt.format": "luks"}, OptionError),
        ({"size": 512, "data_file": "x"}, OptionError),
        ({"size": 64 << 30, "cluster_size": 512, "refcount_bits": 64, "preallocation": "metadata"}, OptionError),
    ],
)
async def test_refused_before_anything_is_written(options, error):
    file = MemoryIO()
    with pytest.raises(error):
        await create(file, options)
    assert file.log == []


async def test_encryption_may_be_switched_off():
    assert await made("size=1M,encryption=off") == await made("size=1M")


@pytest.mark.parametrize("text", ["size=1M", "size=1M,cluster_size=512,preallocation=metadata"])
async def test_no_image_before_everything_else_is_stable(text):
    """Fail each request in turn: what is left is never taken for an image, not even after a power cut."""
    whole = MemoryIO()
    await create(whole, values(text))
    assert whole.stable == whole.data
    assert [call.verb for call in whole.log[-3:]] == ["flush", "pwrite", "flush"]
    assert whole.log[-2].offset == 0
    for number in range(1, len(whole.log) + 1):
        file = MemoryIO()
        file.before = fail_nth(number, OSError(errno.EIO, "Input/output error"))
        with pytest.raises(OSError, match="Input/output error"):
            await create(file, values(text))
        assert file.stable[:4] != MAGIC
        # Only the last flush finds the header in place, and then all that it points to is stable.
        assert (file.data[:4] == MAGIC) == (number == len(whole.log))
        if number >= len(whole.log) - 1:
            assert file.stable[512:] == whole.data[512:]


@pytest.mark.parametrize("mode", ["off", "metadata", "falloc"])
async def test_a_device_that_held_an_image(mode):
    """A file that cannot be emptied: no old image shows through, no old bytes do."""
    content = (MAGIC + b"old bytes") * 40000
    file = MemoryIO(content)
    options = values(f"size=128K,cluster_size=512,preallocation={mode}")
    file.before = fail_nth(2, OSError(errno.EIO, "Input/output error"), verb="flush")
    with pytest.raises(OSError, match="Input/output error"):
        await create(file, options)
    assert file.data[:4] != MAGIC
    file.before = None
    await create(file, options)
    fresh = MemoryIO()
    await create(fresh, options)
    assert file.data[: len(fresh.data)] == fresh.data


@pytest.mark.parametrize(("mode", "how"), [("metadata", "off"), ("falloc", "falloc"), ("full", "full")])
async def test_preallocation_reaches_the_file(mode, how):
    file = MemoryIO()
    await create(file, values(f"size=1M,preallocation={mode}"))
    truncates = [call for call in file.log if call.verb.startswith("truncate")]
    assert [(call.verb, call.nbytes) for call in truncates] == [(f"truncate {how}", len(file.data))]


def test_options_are_described():
    assert len(KINDS) == len(CREATE_OPTIONS)
    assert set(KINDS.values()) == set(READ)
    shown = {option.name: option.default for option in CREATE_OPTIONS if option.default is not None}
    assert shown == {
        "cluster_size": 65536,
        "extended_l2": False,
        "compression_type": "zlib",
        "lazy_refcounts": False,
        "refcount_bits": 16,
    }


@pytest.mark.oracle
def test_option_help_is_qemus():
    require("qemu-img")
    printed = qemu_img("create", "-f", "qcow2", "-o", "help").stdout.splitlines()
    kinds = {"size": "size", "int": "num", "bool": "bool (on/off)", "str": "str"}
    ours = {(f"{option.name}=<{kinds[option.kind]}>", option.help) for option in CREATE_OPTIONS}
    assert ours == {
        (name.strip(), text) for name, _, text in (line.partition(" - ") for line in printed if line[:2] == "  ")
    }


async def test_header_tells_what_was_asked():
    data = await made("size=3M,cluster_size=16k,extended_l2=on,compression_type=zstd,lazy_refcounts=on,backing_file=b")
    header = parse_header(data, "x", len(data))
    assert (header.size, header.cluster_size, header.extended_l2) == (3 << 20, 16384, True)
    assert (header.compression_type, header.lazy_refcounts, header.backing_file) == (1, True, "b")
