"""Words of command lines: names of images in every notation, sizes, options."""

import json
import random
from collections.abc import Callable, Sequence

from tests.drop_in.shelf import SECRET, Image, Shelf

__all__ = ["CACHES", "Chance", "Table", "cache", "chosen", "name_of", "size"]

CACHES = ("none", "off", "writeback", "unsafe", "writethrough", "directsync")

Chance = random.Random
Table = Sequence[tuple[float, Callable[[], list[str]]]]
"""How likely an option is, and what makes its words."""


def chosen(chance: Chance, table: Table) -> list[list[str]]:
    """The options that came up, in random order."""
    found = [make() for likely, make in table if chance.random() < likely]
    chance.shuffle(found)
    return [words for words in found if words]


def size(chance: Chance, number: int) -> str:
    """A number of bytes as people write it."""
    forms = [str(number)]
    if number and number % 1024 == 0:
        forms += [f"{number // 1024}{chance.choice('kK')}", f"{number / 1048576:.6g}M" if number >= 65536 else "4k"]
    if number and chance.random() < 0.1:
        forms += [f"{number}b", hex(number)]
    return chance.choice(forms)


def cache(chance: Chance) -> str:
    return chance.choice(CACHES)


def name_of(chance: Chance, image: Image, format: str = "-f", *, image_opts: bool | None = None) -> list[str]:
    """The words that name an image; the last one is the name, those before it are options.

    `format` is the option that tells the format. `image_opts`: whether the name is a list of options, None for any.
    """
    secret = {"key-secret": "key"} if image.encrypted else {}
    if image_opts or image.encrypted or (image_opts is None and chance.random() < 0.12):
        name = f"driver={image.format},file.driver=file,file.filename={image.name}"
        if chance.random() < 0.3:
            name = f"driver={image.format},file.filename={image.name}"
        if image.encrypted:
            return ["--object", SECRET, "--image-opts", name + ",key-secret=key"]
        return ["--image-opts", name]
    if chance.random() < 0.1:
        described = {"driver": image.format, "file": {"driver": "file", "filename": image.name}, **secret}
        return ["json:" + json.dumps(described)]
    told = [format, image.format] if chance.random() < 0.6 else []
    return [*told, chance.choice([image.name] * 8 + [f"file:{image.name}", f"./{image.name}"])]


def spread(chance: Chance, options: list[list[str]], operands: list[str]) -> list[str]:
    """A command line: operands in order, options anywhere."""
    line: list[list[str]] = [[word] for word in operands]
    for words in options:
        line.insert(chance.randrange(0, len(line) + 1) if chance.random() < 0.3 else 0, words)
    return [word for words in line for word in words]


def any_format(chance: Chance) -> str:
    return chance.choice(["raw", "qcow2", "qcow2", "qcow2"])


def some_size(chance: Chance, shelf: Shelf) -> str:
    return size(chance, chance.choice([shelf.pick(chance, plain=False).size, 512 * chance.randrange(0, 4096)]))
