"""The LUKS1 header: as it is written it is read; what is hostile in it is refused before it costs memory or time."""

import struct
from typing import Any

import pytest

from aioblock.base.errors import ImageError, InvalidImage, UnsupportedFeature
from aioblock.luks.header import HEADER_BYTES, SLOTS, Header, KeySlot, active_field, parse_header, slot_field

ROOM = 4 << 20
STRIDE = 258048
PAYLOAD = 4096 + SLOTS * STRIDE


def header(**changes: Any) -> Header:
    slots = [KeySlot(number == 0, 2000 if number == 0 else 0, bytes([number]) * 32, 4096 + number * STRIDE) for number
             in range(SLOTS)]  # fmt: skip
    fields: dict[str, Any] = {
        "cipher": "aes-256",
        "mode": "xts",
        "iv_generator": "plain64",
        "iv_hash": None,
        "hash": "sha256",
        "payload_offset": PAYLOAD,
        "key_bytes": 64,
        "digest": bytes(range(20)),
        "digest_salt": bytes(range(32)),
        "digest_iterations": 1000,
        "uuid": "0c23c0cf-ac8b-40a3-be82-f2f8095f8639",
        "slots": slots,
    }
    return Header(**fields | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cipher": "aes-128", "key_bytes": 32},
        {"cipher": "aes-192", "mode": "cbc", "iv_generator": "essiv", "iv_hash": "sha256", "key_bytes": 24},
        {"mode": "ecb", "iv_generator": "plain", "key_bytes": 32, "hash": "ripemd160"},
        {"mode": "ctr", "iv_hash": "sha1", "key_bytes": 32, "hash": "sha1"},
    ],
)
def test_round_trip(changes: dict[str, Any]) -> None:
    made = header(**changes)
    data = made.serialise()
    assert len(data) == HEADER_BYTES
    assert parse_header(data + b"whatever follows", ROOM) == made
    assert parse_header(data, ROOM).serialise() == data


def test_fields_of_slots_are_where_they_are_read() -> None:
    made = header()
    data = bytearray(made.serialise())
    for number in range(SLOTS):
        new = KeySlot(not made.slots[number].active, 7, b"s" * 32, made.slots[number].offset)
        at, packed = slot_field(number, new)
        data[at : at + len(packed)] = packed
        assert parse_header(data, ROOM).slots[number] == new
        new.active = not new.active
        at, packed = active_field(number, new)
        data[at : at + len(packed)] = packed
        assert parse_header(data, ROOM).slots[number] == new


def test_the_state_of_a_slot_lies_in_one_sector() -> None:
    for number, slot in enumerate(header().slots):
        at, packed = active_field(number, slot)
        assert at // 512 == (at + len(packed) - 1) // 512
    at, packed = slot_field(6, header().slots[6])
    assert at // 512 != (at + len(packed) - 1) // 512  # which is why the state is written by itself


def put(at: int, code: str, value: int | bytes) -> bytearray:
    data = bytearray(header().serialise())
    struct.pack_into(">" + code, data, at, value)
    return data


def slot(number: int, at: int) -> int:
    return 208 + 48 * number + at


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(put(0, "B", 0), "not in LUKS format", id="magic"),
        pytest.param(put(8, "32s", b"a" * 32), "cipher name is not NUL terminated", id="cipher without NUL"),
        pytest.param(put(40, "32s", b"x" * 32), "cipher mode is not NUL terminated", id="mode without NUL"),
        pytest.param(put(72, "32s", b"s" * 32), "hash spec is not NUL terminated", id="hash without NUL"),
        pytest.param(put(168, "40s", b"u" * 40), "uuid is not NUL terminated", id="uuid without NUL"),
        pytest.param(put(40, "32s", b"xts"), "Unexpected cipher mode string format 'xts'", id="mode without IV"),
        pytest.param(put(40, "32s", b"cbc-essiv"), "Missing IV generator hash", id="essiv without hash"),
        pytest.param(put(108, "I", 0), "key size 0 bytes", id="no key"),
        pytest.param(put(108, "I", 1 << 31), "key size 2147483648 bytes", id="key of 2 GiB"),
        pytest.param(put(108, "I", 24), "key size 24 bytes", id="a key of another cipher"),
        pytest.param(put(164, "I", 0), "digest is zero", id="no iterations of the digest"),
        pytest.param(put(104, "I", 0), "overlapping with the header", id="payload 0"),
        pytest.param(put(104, "I", 1), "overlapping with the header", id="payload in the header"),
        pytest.param(put(104, "I", (ROOM >> 9) + 1), "behind the end", id="payload past the end"),
        pytest.param(put(104, "I", 0xFFFFFFFF), "behind the end", id="payload 2^32-1"),
        pytest.param(
            put(104, "I", (PAYLOAD >> 9) - 9), "Keyslot 7 is overlapping with the encrypted payload", id="tail"
        ),
        pytest.param(put(slot(3, 0), "I", 5), "Keyslot 3 state", id="state"),
        pytest.param(put(slot(0, 4), "I", 0), "Keyslot 0 iteration count is zero", id="no iterations"),
        pytest.param(put(slot(2, 44), "I", 0), "Keyslot 2 is corrupted .stripes 0", id="no stripes"),
        pytest.param(put(slot(2, 44), "I", 0xFFFFFFFF), "stripes 4294967295", id="2^32-1 stripes"),
        pytest.param(put(slot(2, 40), "I", 0), "Keyslot 2 is overlapping with the LUKS header", id="slot at 0"),
        pytest.param(put(slot(2, 40), "I", 1), "Keyslot 2 is overlapping with the LUKS header", id="slot in header"),
        pytest.param(put(slot(2, 40), "I", 0xFFFFFFFF), "encrypted payload", id="slot at 2^32-1"),
        pytest.param(put(slot(5, 40), "I", 8), "Keyslots 0 and 5 are overlapping", id="slots on each other"),
        pytest.param(put(slot(5, 40), "I", 8 + 499), "Keyslots 0 and 5 are overlapping", id="slots, the last sector"),
        pytest.param(bytearray(header().serialise()[:-1]), "not in LUKS format", id="too short"),
        pytest.param(bytearray(), "not in LUKS format", id="nothing"),
    ],
)
def test_what_is_hostile_is_refused(data: bytearray, reason: str) -> None:
    with pytest.raises(InvalidImage, match=reason):
        parse_header(data, ROOM)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (put(6, "H", 2), "LUKS version 2"),
        (put(8, "32s", b"serpent"), "Algorithm 'serpent' not supported"),
        (put(8, "32s", b"\xff\xfe"), "Algorithm"),
        (put(40, "32s", b"lrw-plain64"), "Cipher mode 'lrw'"),
        (put(40, "32s", b"xts-benbi"), "IV generator 'benbi'"),
        (put(40, "32s", b"xts-essiv:crc32"), "Hash 'crc32'"),
        (put(72, "32s", b"whirlpool"), "Hash 'whirlpool'"),
    ],
)
def test_what_we_do_not_have_is_named(data: bytearray, reason: str) -> None:
    with pytest.raises(UnsupportedFeature, match=reason) as caught:
        parse_header(data, ROOM)
    assert caught.value.features


def test_slots_may_adjoin() -> None:
    made = header()
    made.slots[5].offset = 0
    made.slots[5].offset = made.slots[4].offset + made.material_bytes
    made.slots[6].offset = made.slots[5].offset + made.material_bytes
    assert parse_header(made.serialise(), ROOM) == made


def test_any_bytes_give_a_header_or_an_error() -> None:
    data = header().serialise()
    for at in range(HEADER_BYTES):
        for value in (0, 0x7F, 0xFF):
            changed = bytearray(data)
            changed[at] = value
            try:
                found = parse_header(changed, ROOM)
            except ImageError:
                continue
            assert found.payload_offset <= ROOM
            assert all(slot.offset + found.material_bytes <= found.payload_offset for slot in found.slots)
