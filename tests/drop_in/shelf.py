"""Shelves: folders of random images, made with QEMU's programs."""

import os
import random
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.drop_in.programs import theirs

__all__ = ["SECRET", "Image", "Shelf", "fill"]

SECRET = "secret,id=key,data=walnut"
"""The object that encrypted images are opened with."""

_SECTOR = 512


@dataclass(frozen=True)
class Image:
    """One image of a shelf."""

    name: str
    format: str
    size: int
    cluster: int = 65536
    version: int = 3
    backing: "Image | None" = None
    snapshots: tuple[str, ...] = ()
    bitmaps: tuple[str, ...] = ()
    encrypted: bool = False

    @property
    def chain(self) -> list["Image"]:
        """The image and what lies below it."""
        return [self, *(self.backing.chain if self.backing else [])]


@dataclass
class Shelf:
    """The images of a folder, by name."""

    images: dict[str, Image] = field(default_factory=dict)

    def pick(self, chance: random.Random, *formats: str, overlay: bool = False, plain: bool = True) -> Image:
        """Any image, of one of these formats, with a backing file, or without encryption."""
        found = [
            image
            for image in self.images.values()
            if (not formats or image.format in formats)
            and (not overlay or image.backing is not None)
            and not (plain and image.encrypted)
        ]
        return chance.choice(found)


class _Maker:
    def __init__(self, chance: random.Random, folder: Path) -> None:
        self.chance, self.folder, self.shelf = chance, folder, Shelf()

    def img(self, *argv: str) -> None:
        done = theirs(argv, self.folder)
        assert done.status == 0, (argv, done)

    def io(self, image: Image, *commands: str, secret: bool = False) -> None:
        argv = [word for command in commands for word in ("-c", command)]
        extra = ["--object", SECRET] if secret else []
        name = _opened(image) if secret else image.name
        how = ["--image-opts", name] if secret else ["-f", image.format, name]
        done = theirs([*extra, *argv, *how], self.folder, "qemu-io")
        assert done.status == 0, (argv, done)

    def size(self, near: int | None = None) -> int:
        """A disk's size: small, seldom round; near another one where one is given."""
        unit = self.chance.choice([_SECTOR, 4096, 65536])
        if near is not None and self.chance.random() < 0.7:
            return max(unit, near + self.chance.choice([-1, 0, 0, 1]) * unit * self.chance.randrange(0, 9))
        return unit * self.chance.randrange(1, max(2, (1 << 20) // unit))

    def raw(self, name: str, size: int | None = None) -> Image:
        image = Image(name, "raw", self.size() if size is None else size, cluster=_SECTOR)
        path = self.folder / name
        with path.open("wb") as file:
            file.truncate(image.size)
        self.write(image)
        if self.chance.random() < 0.2:  # not a whole number of sectors
            short = max(1, image.size - self.chance.randrange(1, _SECTOR))
            os.truncate(path, short)
            image = replace(image, size=short)
        return self.put(image)

    def put(self, image: Image) -> Image:
        self.shelf.images[image.name] = image
        return image

    def write(self, image: Image, *, compressed: bool = False, most: int = 8, secret: bool = False) -> None:
        """Some data, zeroes and discards at random places."""
        commands = []
        length = image.size // _SECTOR * _SECTOR
        for _ in range(self.chance.randrange(0, most)):
            unit = self.chance.choice([_SECTOR, 4096, image.cluster])
            offset = self.chance.randrange(0, max(1, length // unit)) * unit
            nbytes = min(self.chance.choice([unit, 2 * unit, 3 * image.cluster]), length - offset)
            if nbytes <= 0:
                continue
            byte = self.chance.randrange(1, 256)
            kinds = [f"write -P {byte} {offset} {nbytes}"] * 4
            kinds += [f"write -z {offset} {nbytes}", f"write -P 0 {offset} {nbytes}"]
            if image.format == "qcow2":
                kinds += [f"discard {offset} {nbytes}", f"write -z -u {offset} {nbytes}"]
            commands.append(self.chance.choice(kinds))
        if compressed:
            at = self.chance.randrange(0, max(1, image.size // image.cluster)) * image.cluster
            nbytes = min(image.cluster, image.size - at)
            commands.insert(0, f"write -c -P {self.chance.randrange(1, 256)} {at} {nbytes}")
        if commands:
            self.io(image, *commands, secret=secret)

    def qcow2(self, name: str, backing: Image | None = None, *, plain: bool = False) -> Image:
        chance = self.chance
        version = 3 if plain or chance.random() < 0.8 else 2
        extended = version == 3 and not plain and chance.random() < 0.2
        cluster = chance.choice([16384, 65536]) if extended else chance.choice([512, 4096, 16384, 65536, 65536])
        size = self.size(backing.size if backing else None) // _SECTOR * _SECTOR
        options = [f"cluster_size={cluster}", f"compat={'1.1' if version == 3 else '0.10'}"]
        zstd = version == 3 and chance.random() < 0.25
        if version == 3:
            options += ["extended_l2=on"] * extended + ["compression_type=zstd"] * zstd
            if chance.random() < 0.3:
                options.append(f"refcount_bits={chance.choice([8, 16, 32, 64])}")
            if chance.random() < 0.2:
                options.append("lazy_refcounts=on")
        preallocated = backing is None and chance.random() < 0.2
        if preallocated:
            options.append(f"preallocation={chance.choice(['metadata', 'falloc', 'full'])}")
        below = []
        if backing is not None:
            below = ["-b", backing.name]
            below += ["-F", backing.format]
        self.img("create", "-q", "-f", "qcow2", *below, "-o", ",".join(options), name, str(size))
        image = Image(name, "qcow2", size, cluster, version, backing)
        self.write(image, compressed=not preallocated and chance.random() < 0.3)
        if chance.random() < 0.3:
            image = self.with_snapshots(image)
        if version == 3 and chance.random() < 0.3:
            image = self.with_bitmaps(image)
        return self.put(image)

    def with_snapshots(self, image: Image) -> Image:
        names = []
        for number in range(self.chance.randrange(1, 3)):
            names.append(self.chance.choice([f"snap{number}", f"before {number}", str(number + 1), f"s{number}"]))
            self.img("snapshot", "-c", names[-1], image.name)
            self.write(image, most=4)
        return replace(image, snapshots=tuple(names))

    def with_bitmaps(self, image: Image) -> Image:
        names = []
        for number in range(self.chance.randrange(1, 3)):
            names.append(f"map{number}")
            grain = ["-g", str(512 << self.chance.randrange(0, 9))] if self.chance.random() < 0.7 else []
            state = ["--disable"] if self.chance.random() < 0.3 else []
            self.img("bitmap", "--add", *state, *grain, "-f", "qcow2", image.name, names[-1])
            self.write(image, most=4)
        return replace(image, bitmaps=tuple(names))

    def with_data_file(self, name: str) -> Image:
        size = self.size()
        options = ["data_file=" + name + ".data"] + ["data_file_raw=on"] * (self.chance.random() < 0.5)
        self.img("create", "-q", "-f", "qcow2", "-o", ",".join(options), name, str(size))
        image = Image(name, "qcow2", size)
        self.write(image)
        return self.put(image)

    def luks(self, name: str) -> Image:
        size = self.size()
        options = "key-secret=key,iter-time=10"
        command = ["create", "-q", "--object", SECRET, "-f", "luks", "-o", options, name, str(size)]
        while theirs(command, self.folder).status:  # it times itself, and cannot always
            pass
        image = Image(name, "luks", size, 512, encrypted=True)
        self.write(image, secret=True)
        return self.put(image)

    def leak(self, image: Image) -> None:
        """Give an image errors: clusters that nothing uses, or a wrong refcount."""
        path = self.folder / image.name
        if self.chance.random() < 0.5:  # a table of refcounts says less than there is
            data = path.read_bytes()
            table = int.from_bytes(data[48:56], "big")
            block = int.from_bytes(data[table : table + 8], "big")
            at = block + self.chance.randrange(0, 16)
            with path.open("r+b") as file:
                file.seek(at)
                file.write(bytes([self.chance.choice([0, 1, 2, 255])]))
        else:
            with path.open("r+b") as file:  # a broken entry of the L1 table
                file.seek(40)
                table = int.from_bytes(file.read(8), "big")
                file.seek(table)
                file.write(self.chance.choice([bytes(8), b"\x80" + bytes(7), bytes(6) + b"\x12\x34"]))


def _opened(image: Image) -> str:
    return f"driver={image.format},key-secret=key,file.filename={image.name}"


def fill(chance: random.Random, folder: Path, *, broken: bool = False, luks: bool = False) -> Shelf:
    """Make the images of a shelf. `broken`: some have errors in their metadata."""
    make = _Maker(chance, folder)
    base = make.raw("base.raw") if chance.random() < 0.4 else make.qcow2("base.qcow2")
    middle = make.qcow2("mid.qcow2", base)
    top = middle
    if chance.random() < 0.6:
        top = make.qcow2("top.qcow2", middle)
    make.raw("disk.raw")
    other = make.qcow2("other.qcow2")
    if chance.random() < 0.3:
        make.raw("tiny.raw", chance.choice([0, 512, 1024]))
    if chance.random() < 0.3:
        make.with_data_file("ext.qcow2")
    if chance.random() < 0.4:
        path = folder / "same.img"
        path.write_bytes((folder / other.name).read_bytes())
        make.put(replace(other, name="same.img"))
        if chance.random() < 0.6:
            make.write(make.shelf.images["same.img"], most=3)
    if luks:
        make.luks("vault.luks")
    if broken:
        for image in [other, top]:
            if chance.random() < 0.6:
                make.leak(image)
    return make.shelf
