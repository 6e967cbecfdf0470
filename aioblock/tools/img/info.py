"""`info`: what an image says about itself. Starts fast: no numpy, no uvloop."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..program import ProgramError, define_object, error_text, open_image, run
from .command import SECTOR, Options, check_image_opts, parse_output
from .paths import actual_path
from .qjson import to_json
from .snapshot_list import snapshot_facts, snapshot_list

if TYPE_CHECKING:
    from aioblock import BlockBackend

__all__ = ["USAGE", "main"]

USAGE = "[--object objectdef] [--image-opts] [-f fmt] [--output=ofmt] [--backing-chain] [-U] filename"

_LONG = {
    "format": "f:",
    "output": "output:",
    "backing-chain": "backing-chain",
    "object": "object:",
    "image-opts": "image-opts",
    "force-share": "U",
}


def main(argv: Sequence[str]) -> int:
    """Run the subcommand. Raises: ProgramError."""
    format: str | None = None
    json = chain = image_opts = force_share = False
    options = Options(argv, "f:U", _LONG)
    for option, value in options:
        if option == "f":
            format = value
        elif option == "U":
            force_share = True
        elif option == "output":
            json = parse_output(value)
        elif option == "backing-chain":
            chain = True
        elif option == "image-opts":
            image_opts = True
        elif option == "object":
            define_object(value)
    name = options.one_image()
    check_image_opts(image_opts, format)
    return run(lambda: _info(name, format, json, chain, image_opts, force_share), fast=False)


async def _info(name: str, format: str | None, json: bool, chain: bool, image_opts: bool, force_share: bool) -> None:
    images: list[dict[str, Any]] = []
    texts: list[str] = []
    next_name: str | None = name
    while next_name is not None:
        if any(image["filename"] == next_name for image in images):
            raise ProgramError(f"Backing file '{next_name}' creates an infinite loop.")
        facts, text = await _image(next_name, format, image_opts and not images, force_share)
        images.append(facts)
        texts.append(text)
        next_name, format = facts.get("full-backing-filename"), facts.get("backing-filename-format")
        if not chain:
            break
    if json:
        print(to_json(images if chain else images[0]))
    else:
        print("\n".join(texts), end="")


async def _image(name: str, format: str | None, image_opts: bool, force_share: bool) -> tuple[dict[str, Any], str]:
    from aioblock import BlockError

    try:
        disk = await open_image(
            name, image_opts=image_opts, format=format, force_share=force_share, backing=False, metadata_only=True
        )
        async with disk:
            facts = await _facts(disk)
            return facts, _text(facts, disk)
    except (OSError, BlockError) as error:
        raise ProgramError(f"Could not open '{name}': {error_text(error)}") from error


async def _facts(disk: "BlockBackend") -> dict[str, Any]:
    """What is known of an image, in the order in which QEMU prints it as JSON."""
    info, driver = disk.info(), disk.node.driver
    facts: dict[str, Any] = {
        "snapshots": snapshot_facts(disk.snapshots()) or None,
        "backing-filename-format": info.backing.format if info.backing else None,
        "virtual-size": -(-disk.length // SECTOR) * SECTOR,
        "filename": disk.name,
        "cluster-size": info.cluster_size,
        "format": driver.name,
        "actual-size": await disk.allocated_size(),
        "format-specific": {"type": driver.name, "data": info.specific} if info.specific is not None else None,
    }
    if info.backing is not None:
        facts["full-backing-filename"] = actual_path(_file_name(disk), info.backing.filename)
        facts["backing-filename"] = info.backing.filename
    facts["encrypted"] = info.encrypted or None
    facts["compressed"] = info.compressed or None
    facts["dirty-flag"] = info.dirty if driver.kind != "protocol" else None
    return {key: value for key, value in facts.items() if value is not None}


def _file_name(disk: "BlockBackend") -> str:
    """The name of the file that the image lies in; "" where it is no single file."""
    node = disk.node
    while not node.exact_filename and node.file is not None:
        node = node.file.node
    return node.exact_filename


def _text(facts: dict[str, Any], disk: "BlockBackend") -> str:
    """The same for people."""
    from aioblock import human_size

    length, stored = facts["virtual-size"], facts.get("actual-size")
    lines = [
        f"image: {facts['filename']}",
        f"file format: {facts['format']}",
        f"virtual size: {human_size(length)} ({length} bytes)",
        f"disk size: {human_size(stored) if stored is not None else 'unavailable'}",
    ]
    if facts.get("encrypted"):
        lines.append("encrypted: yes")
    if "cluster-size" in facts:
        lines.append(f"cluster_size: {facts['cluster-size']}")
    if facts.get("dirty-flag"):
        lines.append("cleanly shut down: no")
    if "backing-filename" in facts:
        name, full = facts["backing-filename"], facts.get("full-backing-filename")
        where = " (cannot determine actual path)" if full is None else f" (actual path: {full})" if full != name else ""
        lines.append(f"backing file: {name}{where}")
    if "backing-filename-format" in facts:
        lines.append(f"backing file format: {facts['backing-filename-format']}")
    lines += snapshot_list(disk.snapshots())
    details = disk.info().lines
    if details:
        lines.append("Format specific information:")
        lines += [f"    {line}" for line in details]
    return "\n".join(lines) + "\n"
