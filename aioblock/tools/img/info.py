"""`info`: what an image says about itself. Starts fast: no numpy, no uvloop."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..program import ProgramError, define_object, error_text, open_image, run
from .command import SECTOR, Options, check_image_opts, parse_output
from .qjson import to_json
from .snapshot_list import snapshot_list

if TYPE_CHECKING:
    from aioblock import ImageInfo

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
    images: list[ImageInfo] = []
    next_name: str | None = name
    while next_name is not None:
        if any(image.filename == next_name for image in images):
            raise ProgramError(f"Backing file '{next_name}' creates an infinite loop.")
        images.append(await _image(next_name, format, image_opts and not images, force_share))
        next_name, format = images[-1].full_backing_filename, images[-1].backing_format
        if not chain:
            break
    if json:
        facts = [image.as_dict() for image in images]
        print(to_json(facts if chain else facts[0]))
    else:
        print("\n".join(_text(image) for image in images), end="")


async def _image(name: str, format: str | None, image_opts: bool, force_share: bool) -> "ImageInfo":
    from aioblock import BlockError, info

    try:
        async with await open_image(
            name, image_opts=image_opts, format=format, force_share=force_share, backing=False, metadata_only=True
        ) as disk:
            return await info(disk)
    except (OSError, BlockError) as error:
        raise ProgramError(f"Could not open '{name}': {error_text(error)}") from error


def _text(image: "ImageInfo") -> str:
    """What is known of an image, for people."""
    from aioblock import human_size

    length, stored = -(-image.virtual_size // SECTOR) * SECTOR, image.actual_size
    lines = [
        f"image: {image.filename}",
        f"file format: {image.format}",
        f"virtual size: {human_size(length)} ({length} bytes)",
        f"disk size: {human_size(stored) if stored is not None else 'unavailable'}",
    ]
    if image.encrypted:
        lines.append("encrypted: yes")
    if image.cluster_size is not None:
        lines.append(f"cluster_size: {image.cluster_size}")
    if image.dirty:
        lines.append("cleanly shut down: no")
    if image.backing_filename is not None:
        name, full = image.backing_filename, image.full_backing_filename
        where = " (cannot determine actual path)" if full is None else f" (actual path: {full})" if full != name else ""
        lines.append(f"backing file: {name}{where}")
    if image.backing_format is not None:
        lines.append(f"backing file format: {image.backing_format}")
    lines += snapshot_list(image.snapshots)
    if image.details:
        lines.append("Format specific information:")
        lines += [f"    {line}" for line in image.details]
    return "\n".join(lines) + "\n"
