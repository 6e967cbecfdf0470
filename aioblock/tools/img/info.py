"""`info`: what an image says about itself. Starts fast: no numpy, no uvloop."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from ..program import ProgramError, error_text, open_image, run
from .asked import Asked, long_options
from .command import SECTOR
from .qjson import to_json
from .snapshot_list import snapshot_list

if TYPE_CHECKING:
    from aioblock import ImageInfo

__all__ = ["USAGE", "main"]

USAGE = "[--object objectdef] [--image-opts] [-f fmt] [--output=ofmt] [--backing-chain] [-U] filename"


class _Asked(Asked):
    SHORT = "f:U"
    LONG = long_options("format", "output", "object", "image-opts", "force-share", backing_chain="backing-chain")
    SWITCHES: ClassVar = {"backing-chain": "chain"}

    chain = False


def main(argv: Sequence[str]) -> int:
    """Run the subcommand. Raises: ProgramError."""
    asked = _Asked(argv)
    name = asked.one_image()
    asked.check_format()
    return run(lambda: _info(asked, name), fast=False)


async def _info(asked: _Asked, name: str) -> None:
    images: list[ImageInfo] = []
    next_name: str | None = name
    format, image_opts = asked.format, asked.image_opts
    while next_name is not None:
        if any(image.filename == next_name for image in images):
            raise ProgramError(f"Backing file '{next_name}' creates an infinite loop.")
        images.append(await _image(next_name, format, image_opts, asked.force_share))
        next_name, format, image_opts = images[-1].full_backing_filename, images[-1].backing_format, False
        if not asked.chain:
            break
    if asked.json:
        facts = [image.as_dict() for image in images]
        print(to_json(facts if asked.chain else facts[0]))
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
