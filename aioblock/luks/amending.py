"""Amend: activate and erase key slots, by the options and in the words of `qemu-img amend`."""

from collections.abc import Mapping
from typing import Any, Final

from aioblock.base.errors import OptionError
from aioblock.core.objects import NamedObject, find_object
from aioblock.core.secrets import Secret
from aioblock.luks.creating import take_iter_time
from aioblock.luks.header import SLOTS
from aioblock.luks.volume import Volume

__all__ = ["amend"]

_LOSS: Final = "will erase all the data in the image irreversibly - refusing operation"


async def amend(
    volume: Volume,
    options: Mapping[str, Any],
    objects: Mapping[str, NamedObject],
    *,
    force: bool = False,
    prefix: str = "",
) -> None:
    """Do what the options, named with the prefix, say; `force`: also what makes the data unreadable for ever.

    The volume is open. Cancelled or failed: each slot is as it was, or as it shall be.
    Raises: OptionError before anything is written; OSError.
    """
    given = {name.removeprefix(prefix): value for name, value in options.items() if name.startswith(prefix)}
    state = given.get("state")
    if state is None:
        raise OptionError(f"Parameter '{prefix}state' is missing", option=f"{prefix}state")
    number: int | None = given.get("keyslot")
    if state == "active":
        await _activate(volume, given, number, objects, force)
    elif state == "inactive":
        await _erase(volume, given, number, objects, force)
    else:
        raise OptionError(f"Parameter 'state' does not accept value '{state}'", option=f"{prefix}state")


def _check_slot(number: int) -> None:
    if not 0 <= number < SLOTS:
        raise OptionError(f"Invalid keyslot {number} specified, must be between 0 and {SLOTS - 1}", option="keyslot")


def _passphrase(value: "str | Secret", objects: Mapping[str, NamedObject]) -> bytes:
    """Of a secret, or of the one that has this id."""
    if isinstance(value, Secret):
        return value.passphrase()
    return find_object(objects, value, Secret).passphrase()


async def _activate(
    volume: Volume, given: Mapping[str, Any], number: int | None, objects: Mapping[str, NamedObject], force: bool
) -> None:
    if given.get("new-secret") is None:
        raise OptionError("'new-secret' is required to activate a keyslot", option="new-secret")
    if given.get("old-secret") is not None:
        raise OptionError("'old-secret' must not be given when activating keyslots", option="old-secret")
    slots = volume.header.slots
    if number is None:
        number = next((free for free in range(SLOTS) if not slots[free].active), None)
        if number is None:
            raise OptionError("Can't add a keyslot - all keyslots are in use")
    _check_slot(number)
    if slots[number].active and not force:
        raise OptionError(f"Refusing to overwrite active keyslot {number} - please erase it first", option="keyslot")
    passphrase = _passphrase(given["new-secret"], objects)
    seconds = take_iter_time(given, "iter-time") / 1000
    if slots[number].active:
        await volume.erase(number)
    await volume.fill(number, passphrase, seconds)


async def _erase(
    volume: Volume, given: Mapping[str, Any], number: int | None, objects: Mapping[str, NamedObject], force: bool
) -> None:
    for name in ("new-secret", "iter-time"):
        if given.get(name) is not None:
            raise OptionError(f"'{name}' must not be given when erasing keyslots", option=name)
    old = given.get("old-secret")
    if number is None and old is None:
        raise OptionError(
            "To erase keyslot(s), either explicit keyslot index or the password currently contained in them must be "
            "given"
        )
    if number is not None:
        _check_slot(number)
    matching = await volume.matching(_passphrase(old, objects)) if old is not None else []
    active = volume.active()
    if number is not None:
        if old is not None and number not in matching:
            raise OptionError(
                f"Given keyslot {number} doesn't contain the given old password for erase operation", option="keyslot"
            )
        if number not in active and not force:
            raise OptionError(f"Given keyslot {number} is already erased (inactive) ", option="keyslot")
        if active == [number] and not force:
            raise OptionError(f"Attempt to erase the only active keyslot {number} which {_LOSS}", option="keyslot")
        await volume.erase(number)
        return
    if not matching:
        raise OptionError("No keyslots match given (old) password for erase operation", option="old-secret")
    if matching == active and not force:
        raise OptionError(
            f"All the active keyslots match the (old) password that was given and erasing them {_LOSS}",
            option="old-secret",
        )
    for slot in matching:
        await volume.erase(slot)
