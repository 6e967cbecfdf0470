"""The lines that a data command prints."""

import pytest

from aioblock.tools.io.report import Stopwatch, dump, report


@pytest.mark.parametrize(
    ("seconds", "figures"),
    [
        (0.5, "00.50 sec (128 KiB/sec and 2.0000 ops/sec)"),
        (1 / 1024, "00.00 sec (64 MiB/sec and 1024.0000 ops/sec)"),
        (59.999, "59.99 sec (1.067 KiB/sec and 0.0167 ops/sec)"),
        (64, "0:01:04.00 (1 KiB/sec and 0.0156 ops/sec)"),
        (1200.39, "0:20:00.39 (54.595590 bytes/sec and 0.0008 ops/sec)"),
        (3600 * 30 + 61.25, "30:01:01.25 (0.606471 bytes/sec and 0.0000 ops/sec)"),
    ],
)
def test_for_people(capsys, seconds, figures):
    report("wrote", 512, 65536, seconds, machine=False)
    assert capsys.readouterr().out == f"wrote 65536/65536 bytes at offset 512\n64 KiB, 1 ops; {figures}\n"


def test_for_machines(capsys):
    report("read", 0, 512, 0.25, machine=True)
    assert capsys.readouterr().out == "512,1,0:00:00.25,2048.000,4.000\n"


def test_nothing_at_all_still_has_a_rate(capsys):
    watch = Stopwatch()
    watch.stop()
    assert watch.seconds > 0
    report("read", 0, 0, watch.seconds, machine=False)
    assert "0 bytes, 1 ops; 00.00 sec (0 bytes/sec and " in capsys.readouterr().out


def test_dump(capsys):
    dump(0xFFFFFFF8, bytearray(b"\0\xff09AZaz-_ \x7f\xb2\xe9()!"))
    assert capsys.readouterr().out.splitlines() == [
        "fffffff8:  00 ff 30 39 41 5a 61 7a 2d 5f 20 7f b2 e9 28 29  ..09AZaz........",
        "100000008:  21  .",
    ]
