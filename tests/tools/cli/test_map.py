"""map: what each layer holds, as a document, in the terminal, and as a picture."""

import asyncio
import xml.etree.ElementTree as ET

import pytest

import aioblock
from tests.tools.cli.conftest import MiB

FONTS = pytest.mark.leaks("matplotlib keeps the fonts open that it has read")

KINDS = {"open": 0, "zero": 0, "compressed": 0, "data": 0}


def runs(layer):
    return [(run["offset"], run["length"], run["kind"]) for run in layer["runs"]]


def test_each_layer_by_itself(chain):
    document = chain.json("map", "top.qcow2")
    assert (document["start"], document["end"]) == (0, 10 * MiB)
    top, mid, base = document["layers"]
    half = MiB // 2
    assert runs(top) == [(0, half, "open"), (half, MiB, "data"), (half + MiB, 10 * MiB - half - MiB, "open")]
    assert runs(mid) == [(0, MiB, "open"), (MiB, MiB, "data"), (2 * MiB, MiB, "zero"), (3 * MiB, 3 * MiB, "open")]
    assert runs(base) == [(0, MiB, "compressed"), (MiB, 7 * MiB, "open")]
    assert mid["totals"] == KINDS | {"open": 4 * MiB, "data": MiB, "zero": MiB}
    assert [layer["length"] for layer in document["layers"]] == [10 * MiB, 6 * MiB, 8 * MiB]


def test_it_agrees_with_what_the_library_says_of_the_chain(chain):
    """What the first layer that holds something holds is what the whole chain says."""

    async def said():
        async with await aioblock.open("top.qcow2") as disk:
            return [(run.offset, run.length, run.depth, run.flags) async for run in disk.extents()]

    layers = chain.json("map", "top.qcow2")["layers"]
    for offset, length, depth, flags in asyncio.run(said()):
        for at in (offset, offset + length - 1):
            holding = [
                (layer["depth"], kind)
                for layer in layers
                for begin, nbytes, kind in runs(layer)
                if begin <= at < begin + nbytes and kind != "open"
            ]
            if flags & aioblock.ALLOCATED and at < layers[depth - 1]["length"]:
                assert holding[0][0] == depth
                assert (holding[0][1] == "zero") == bool(flags & aioblock.ZERO)
            else:
                assert not [found for found in holding if found[0] <= (depth or len(layers))]


def test_a_part(chain):
    document = chain.json("map", "top.qcow2", "--start", "1M", "--length", "1M")
    assert (document["start"], document["end"]) == (MiB, 2 * MiB)
    assert [runs(layer) for layer in document["layers"]] == [
        [(MiB, MiB // 2, "data"), (MiB + MiB // 2, MiB // 2, "open")],
        [(MiB, MiB, "data")],
        [(MiB, MiB, "open")],
    ]
    assert runs(chain.json("map", "top.qcow2", "--start", "9M")["layers"][1]) == []


def test_a_part_behind_the_end(chain):
    result = chain("map", "top.qcow2", "--start", "11M")
    assert result.status == 1
    assert "10 MiB (10485760 bytes)" in result.err


def test_plain_characters_where_it_is_no_terminal(chain, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    lines = chain.ok("map", "top.qcow2").out.splitlines()
    rows = {line.split()[1]: line.split(maxsplit=2)[2] for line in lines[:3]}
    assert all(line.isascii() for line in lines)
    assert set(rows["top.qcow2"]) == set(".#|") and rows["top.qcow2"].endswith("|")
    assert set(rows["mid.qcow2"]) == set(".#0|")
    assert set(rows["base.qcow2"]) == set("%.|")
    # Lengths on the screen are as those of the layers; the mark of the end stands behind.
    width = len(rows["top.qcow2"]) - 1
    assert abs((len(rows["mid.qcow2"]) - 1) / width - 0.6) < 0.02
    assert abs((len(rows["base.qcow2"]) - 1) / width - 0.8) < 0.02
    assert abs(rows["mid.qcow2"].index("0") / width - 0.2) < 0.02
    assert max(map(len, lines)) <= 100


def test_blocks_of_colour_where_colour_is_asked_for(chain):
    text = chain.ok("map", "top.qcow2", "--color").out
    assert "\x1b[" in text and "█" in text and "▏" in text


def test_every_run_as_a_list(chain):
    text = chain.ok("map", "top.qcow2", "--runs").out
    row = next(line for line in text.splitlines() if "compressed" in line)
    assert row.split() == ["0x0", "0x100000", "1", "MiB", "(1048576", "bytes)", "compressed"]


def boxes(root, name):
    """The corners of the boxes of one group of an SVG picture."""
    ns = {"s": "http://www.w3.org/2000/svg"}
    group = root.find(f".//s:g[@id='{name}']", ns)
    if group is None:
        return []
    found = []
    for path in group.iterfind(".//s:path", ns):
        numbers = [float(word) for word in path.get("d").replace("M", " ").replace("L", " ").replace("z", " ").split()]
        xs = numbers[::2]
        found.append((min(xs), max(xs)))
    return found


@pytest.mark.slow
@FONTS
def test_the_picture_as_svg(chain):
    result = chain.ok("map", "top.qcow2", "--plot", "map.svg")
    assert "map.svg" in result.out
    root = ET.parse("map.svg").getroot()
    texts = ["".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")]
    for text in ("top.qcow2", "mid.qcow2", "base.qcow2", "EOF 10 MiB", "EOF 6 MiB", "EOF 8 MiB", "reads as zeroes"):
        assert text in texts
    # The boxes stand where the runs are: scaled by the top layer, which fills the width.
    (left, middle), (data_end, right) = boxes(root, "layer-1-open")
    scale = (right - left) / (10 * MiB)
    for name, expected in {
        "layer-1-data": [(MiB // 2, MiB + MiB // 2)],
        "layer-2-data": [(MiB, 2 * MiB)],
        "layer-2-zero": [(2 * MiB, 3 * MiB)],
        "layer-2-open": [(0, MiB), (3 * MiB, 6 * MiB)],
        "layer-3-compressed": [(0, MiB)],
        "layer-3-open": [(MiB, 8 * MiB)],
    }.items():
        places = [tuple(round((x - left) / scale / MiB, 2) for x in box) for box in boxes(root, name)]
        assert places == [(begin / MiB, end / MiB) for begin, end in expected], name
    for depth, length in ((1, 10), (2, 6), (3, 8)):
        ((x, _),) = boxes(root, f"layer-{depth}-eof")
        assert round((x - left) / scale / MiB, 2) == length
    assert middle < data_end


@pytest.mark.slow
@FONTS
@pytest.mark.parametrize(("name", "begins"), [("map.png", b"\x89PNG"), ("map.pdf", b"%PDF")])
def test_the_picture_in_other_formats(chain, name, begins):
    assert chain.json("map", "top.qcow2", "--plot", name)["plot"] == name
    assert (chain.folder / name).read_bytes().startswith(begins)


def test_a_picture_needs_a_suffix_that_says_what_it_is(chain):
    result = chain("map", "top.qcow2", "--plot", "map.txt")
    assert result.status == 2
    assert ".svg" in result.err
    assert not (chain.folder / "map.txt").exists()
