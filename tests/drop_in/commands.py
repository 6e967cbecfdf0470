"""Command lines of each subcommand, drawn at random: most of them do something, some are refused."""

from collections.abc import Callable

from tests.drop_in.shelf import SECRET, Image, Shelf
from tests.drop_in.words import Chance, any_format, cache, chosen, name_of, size, some_size, spread

__all__ = ["COMMANDS", "NAMES"]


def _line(
    chance: Chance, options: list[list[str]], named: list[str], *more: str, before: tuple[str, ...] = ()
) -> list[str]:
    """Options, and an image as `name_of` gives it, other operands before or behind."""
    *extra, name = named
    if extra:
        options = [*options, extra]
    return spread(chance, options, [*before, name, *more])


def create_options(chance: Chance, format: str, name: str = "new") -> str:
    """A list of options for `-o`, or "" for none."""
    if format == "raw":
        found = [chance.choice(["preallocation=off", "preallocation=falloc", "preallocation=full", "nocow=on"])]
        return found[0] if chance.random() < 0.3 else ""
    table = [
        (0.4, lambda: f"cluster_size={chance.choice(['512', '4k', '16k', '64k', '128K', '1M'])}"),
        (0.3, lambda: f"compat={chance.choice(['0.10', '1.1', 'v2', 'v3'])}"),
        (0.2, lambda: f"lazy_refcounts={chance.choice(['on', 'off'])}"),
        (0.2, lambda: f"refcount_bits={chance.choice([1, 2, 4, 8, 16, 32, 64])}"),
        (0.2, lambda: f"extended_l2={chance.choice(['on', 'off'])}"),
        (0.2, lambda: f"compression_type={chance.choice(['zlib', 'zstd'])}"),
        (0.2, lambda: f"preallocation={chance.choice(['off', 'metadata', 'falloc', 'full'])}"),
        (0.08, lambda: f"data_file={name}.data"),
        (0.04, lambda: f"data_file_raw={chance.choice(['on', 'off'])}"),
        (0.05, lambda: f"size={size(chance, 512 * chance.randrange(1, 3000))}"),
        (0.05, lambda: f"nocow={chance.choice(['on', 'off'])}"),
        (0.05, lambda: "extent_size_hint=1M"),
    ]
    found = [make() for likely, make in table if chance.random() < likely]
    chance.shuffle(found)
    return ",".join(found)


def _target_format(chance: Chance) -> str:
    return chance.choice(["raw", "qcow2", "qcow2", "qcow2"])


def create(chance: Chance, shelf: Shelf) -> list[str]:
    format = _target_format(chance)
    listed = create_options(chance, format)
    options = chosen(chance, [(0.4, lambda: ["-q"]), (0.1, lambda: ["-u"]), (0.05, lambda: ["-o", "help"])])
    options += [["-f", format]] if format != "raw" or chance.random() < 0.7 else []
    if listed:
        options.append(["-o", listed])
    if chance.random() < 0.3:
        backing = shelf.pick(chance)
        options.append(["-b", backing.name])
        if chance.random() < 0.9:
            options.append(["-F", backing.format])
    name = chance.choice(["new", "new", "new.img", "other.qcow2", "sub/new", "base.raw"])
    sizes = [some_size(chance, shelf)] if chance.random() < 0.85 else []
    return ["create", *spread(chance, options, [name, *sizes])]


def info(chance: Chance, shelf: Shelf) -> list[str]:
    options = chosen(
        chance,
        [
            (0.6, lambda: [f"--output={chance.choice(['json', 'json', 'human'])}"]),
            (0.4, lambda: ["--backing-chain"]),
            (0.2, lambda: ["-U"]),
        ],
    )
    image = shelf.pick(chance, plain=False)
    if image.encrypted and chance.random() < 0.5:  # it needs no secret
        return ["info", *spread(chance, options, [image.name])]
    return ["info", *_line(chance, options, name_of(chance, image))]


def map_(chance: Chance, shelf: Shelf) -> list[str]:
    image = shelf.pick(chance, plain=False)
    options = chosen(
        chance,
        [
            (0.6, lambda: [f"--output={chance.choice(['json', 'json', 'human'])}"]),
            (0.3, lambda: [f"--start-offset={size(chance, chance.randrange(0, 2 * image.size + 2))}"]),
            (0.3, lambda: ["--max-length", size(chance, chance.randrange(0, 2 * image.size + 2))]),
            (0.2, lambda: ["-U"]),
        ],
    )
    return ["map", *_line(chance, options, name_of(chance, image))]


def compare(chance: Chance, shelf: Shelf) -> list[str]:
    first = shelf.pick(chance, plain=False)
    second = first
    if chance.random() < 0.8:
        second = shelf.pick(chance, plain=False)
    if "same.img" in shelf.images and chance.random() < 0.4:
        first, second = shelf.images["other.qcow2"], shelf.images["same.img"]
    options = chosen(
        chance,
        [
            (0.4, lambda: ["-s"]),
            (0.2, lambda: ["-q"]),
            (0.2, lambda: ["-p"]),
            (0.2, lambda: ["-U"]),
            (0.3, lambda: ["-T", cache(chance)]),
        ],
    )
    image_opts = chance.random() < 0.1 or first.encrypted or second.encrypted
    one = name_of(chance, first, image_opts=image_opts)
    two = name_of(chance, second, "-F", image_opts=image_opts)
    if one[:-1]:
        options.append(one[:-1])
    if two[:-1] and two[0] not in ("--image-opts",):
        options.append([word for word in two[:-1] if word not in ("--image-opts", "--object", SECRET)])
    return ["compare", *spread(chance, [words for words in options if words], [one[-1], two[-1]])]


def check(chance: Chance, shelf: Shelf) -> list[str]:
    image = shelf.pick(chance, plain=False) if chance.random() < 0.2 else shelf.pick(chance, "qcow2")
    options = chosen(
        chance,
        [
            (0.4, lambda: [f"--output={chance.choice(['json', 'human'])}"]),
            # QEMU's loses the snapshots of an image that has bitmaps too.
            (0.0 if image.snapshots and image.bitmaps else 0.5, lambda: ["-r", chance.choice(["leaks", "all", "all"])]),
            (0.2, lambda: ["-q"]),
            (0.2, lambda: ["-U"]),
            (0.3, lambda: ["-T", cache(chance)]),
        ],
    )
    return ["check", *_line(chance, options, name_of(chance, image))]


def measure(chance: Chance, shelf: Shelf) -> list[str]:
    format = _target_format(chance)
    listed = create_options(chance, format)
    options = chosen(
        chance,
        [
            (0.5, lambda: [f"--output={chance.choice(['json', 'human'])}"]),
            (0.2, lambda: ["-U"]),
            (0.05, lambda: ["-o", "help"]),
        ],
    )
    options += [["-O", format]] if chance.random() < 0.9 else []
    options += [["-o", listed]] if listed else []
    if chance.random() < 0.3:
        return ["measure", *spread(chance, [*options, ["--size", some_size(chance, shelf)]], [])]
    image = shelf.pick(chance, plain=False)
    if image.snapshots and chance.random() < 0.5:
        options.append(["-l", _snapshot(chance, image)])
    return ["measure", *_line(chance, options, name_of(chance, image))]


def _snapshot(chance: Chance, image: Image) -> str:
    name = chance.choice([*image.snapshots, "missing"]) if chance.random() < 0.9 else "1"
    return chance.choice([name, name, f"snapshot.name={name}", f"snapshot.id=1,snapshot.name={name}", "snapshot.id=1"])


def convert(chance: Chance, shelf: Shelf) -> list[str]:
    options = chosen(
        chance,
        [
            (0.2, lambda: ["-p"]),
            (0.1, lambda: ["-q"]),
            (0.15, lambda: ["-U"]),
            (0.2, lambda: ["-t", cache(chance)]),
            (0.2, lambda: ["-T", cache(chance)]),
            (0.3, lambda: ["-S", chance.choice(["0", "512", "4k", "64k", "1M"])]),
            (0.2, lambda: ["-m", str(chance.randrange(1, 17))]),
            (0.2, lambda: ["-W"]),
            (0.1, lambda: ["-C"]),
            (0.1, lambda: ["-r", chance.choice(["1G", "100M"])]),
            (0.1, lambda: ["--salvage"]),
            (0.03, lambda: ["-o", "help"]),
        ],
    )
    sources = [shelf.pick(chance, plain=False)]
    while chance.random() < 0.15 and len(sources) < 4:
        sources.append(shelf.pick(chance, plain=False))
    image_opts = chance.random() < 0.12 or any(image.encrypted for image in sources)
    named = [name_of(chance, image, image_opts=image_opts) for image in sources]
    if named[0][:-1]:
        options.append(named[0][:-1])
    names = [words[-1] for words in named]
    first = sources[0]
    if first.snapshots and chance.random() < 0.3:
        options.append(["-l", _snapshot(chance, first)])
    if chance.random() < (0.6 if first.bitmaps else 0.03):
        options.append(["--bitmaps"])
        options += [["--skip-broken-bitmaps"]] if chance.random() < 0.3 else []
    return ["convert", *_convert_target(chance, shelf, options, names)]


def _convert_target(chance: Chance, shelf: Shelf, options: list[list[str]], names: list[str]) -> list[str]:
    if chance.random() < 0.25:  # into an image that is there
        target = shelf.pick(chance)
        options.append(["-n"])
        options += chosen(
            chance,
            [
                (0.1, lambda: ["--target-is-zero"]),
                (0.1, lambda: ["-c"]),
                (0.1, lambda: ["-B", shelf.pick(chance).name]),
            ],
        )
        if chance.random() < 0.3:
            options.append(["--target-image-opts"])
            return spread(chance, options, [*names, f"driver={target.format},file.filename={target.name}"])
        options.append(["-O", target.format])
        return spread(chance, options, [*names, target.name])
    format = _target_format(chance)
    options += [["-O", format]] if format != "raw" or chance.random() < 0.5 else []
    options += [["-c"]] if chance.random() < (0.3 if format == "qcow2" else 0.03) else []
    listed = create_options(chance, format, "out")
    if chance.random() < 0.15:
        backing = shelf.pick(chance)
        if chance.random() < 0.7:
            options.append(["-B", backing.name])
            options += [["-F", backing.format]] if chance.random() < 0.8 else []
        else:
            more = f"backing_file={backing.name},backing_fmt={backing.format}"
            listed = f"{listed},{more}" if listed else more
    options += [["-o", listed]] if listed else []
    return spread(chance, options, [*names, chance.choice(["out", "out", "out.img", "old.qcow2", "tiny.raw"])])


def dd(chance: Chance, shelf: Shelf) -> list[str]:
    image = shelf.pick(chance, plain=False)
    block = chance.choice([512, 512, 4096, 65536, 100, 1000, 1 << 20])
    blocks = image.size // block + 2
    operands = [
        words[0]
        for words in chosen(
            chance,
            [
                (0.7, lambda: [f"bs={size(chance, block)}"]),
                (0.4, lambda: [f"count={size(chance, chance.randrange(0, blocks))}"]),
                (0.4, lambda: [f"skip={size(chance, chance.randrange(0, blocks))}"]),
            ],
        )
    ]
    options = chosen(chance, [(0.15, lambda: ["-U"]), (0.6, lambda: ["-O", _target_format(chance)])])
    *extra, name = name_of(chance, image)
    options += [extra] if extra else []
    operands += [f"if={name}", f"of={chance.choice(['out', 'out.img', 'disk.raw'])}"]
    chance.shuffle(operands)
    return ["dd", *spread(chance, options, operands)]


def resize(chance: Chance, shelf: Shelf) -> list[str]:
    image = shelf.pick(chance, plain=False)
    options = chosen(
        chance,
        [
            (0.3, lambda: ["-q"]),
            (0.4, lambda: ["--shrink"]),
            (0.3, lambda: [f"--preallocation={chance.choice(['off', 'metadata', 'falloc', 'full'])}"]),
        ],
    )
    step = chance.choice([1, 512, 4096, 65536]) * chance.randrange(0, 12)
    wanted = chance.choice([f"+{size(chance, step)}"] * 2 + [f"-{size(chance, step)}", some_size(chance, shelf)])
    *extra, name = name_of(chance, image)
    options += [extra] if extra else []
    return ["resize", *[word for words in options for word in words], name, wanted]


def snapshot(chance: Chance, shelf: Shelf) -> list[str]:
    found = [image for image in shelf.images.values() if image.snapshots]
    image = chance.choice(found) if found and chance.random() < 0.8 else shelf.pick(chance, plain=False)
    name = chance.choice([*image.snapshots, "fresh", "1", "2"])
    options = chosen(chance, [(0.2, lambda: ["-q"]), (0.2, lambda: ["-U"])])
    options.append(chance.choice([["-l"], ["-c", name], ["-a", name], ["-a", name], ["-d", name], ["-d", name]]))
    named = name_of(chance, image)
    if named[0] == "-f":
        named = named[2:]
    return ["snapshot", *_line(chance, options, named)]


def bitmap(chance: Chance, shelf: Shelf) -> list[str]:
    found = [image for image in shelf.images.values() if image.bitmaps]
    image = chance.choice(found) if found and chance.random() < 0.8 else shelf.pick(chance, plain=False)
    names = [*image.bitmaps, "fresh"]
    options = []
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        action = chance.choice(["--add", "--remove", "--clear", "--enable", "--disable", "--merge"])
        options.append([action] + ([chance.choice(names)] if action == "--merge" else []))
    if chance.random() < 0.3:
        options.append([chance.choice(["-g", "--granularity"]), chance.choice(["512", "4k", "64k", "1M", "2G", "100"])])
    if found and chance.random() < 0.3:
        other = chance.choice(found)
        options.append(["-b", other.name])
        options += [["-F", other.format]] if chance.random() < 0.6 else []
    return ["bitmap", *_line(chance, options, name_of(chance, image), chance.choice(names))]


def amend(chance: Chance, shelf: Shelf) -> list[str]:
    image = shelf.pick(chance, plain=False) if chance.random() < 0.1 else shelf.pick(chance, "qcow2")
    table = [
        (0.4, lambda: f"compat={chance.choice(['0.10', '1.1', 'v3'])}"),
        (0.3, lambda: f"lazy_refcounts={chance.choice(['on', 'off'])}"),
        (0.3, lambda: f"refcount_bits={chance.choice([1, 2, 8, 16, 32, 64])}"),
        (0.2, lambda: f"size={some_size(chance, shelf)}"),
        (0.1, lambda: f"backing_file={shelf.pick(chance).name}"),
        (0.1, lambda: f"backing_fmt={any_format(chance)}"),
        (0.05, lambda: f"cluster_size={image.cluster}"),
        (0.05, lambda: "preallocation=off"),
        (0.05, lambda: f"data_file_raw={chance.choice(['on', 'off'])}"),
        (0.03, lambda: "help"),
    ]
    listed = [make() for likely, make in table if chance.random() < likely] or ["compat=1.1"]
    chance.shuffle(listed)
    options = chosen(
        chance,
        [
            (0.2, lambda: ["-p"]),
            (0.2, lambda: ["-q"]),
            (0.2, lambda: ["-t", cache(chance)]),
            (0.1, lambda: ["--force"]),
        ],
    )
    options.append(["-o", ",".join(listed)])
    return ["amend", *_line(chance, options, name_of(chance, image))]


def commit(chance: Chance, shelf: Shelf) -> list[str]:
    image = shelf.pick(chance, plain=False) if chance.random() < 0.1 else shelf.pick(chance, "qcow2", overlay=True)
    options = chosen(
        chance,
        [
            (0.2, lambda: ["-p"]),
            (0.2, lambda: ["-q"]),
            (0.3, lambda: ["-d"]),
            (0.3, lambda: ["-t", cache(chance)]),
            (0.3, lambda: ["-b", chance.choice([*(below.name for below in image.chain), "missing"])]),
            (0.1, lambda: ["-r", "1G"]),
        ],
    )
    return ["commit", *_line(chance, options, name_of(chance, image))]


def rebase(chance: Chance, shelf: Shelf) -> list[str]:
    image = shelf.pick(chance, plain=False) if chance.random() < 0.1 else shelf.pick(chance, "qcow2")
    options = chosen(
        chance,
        [
            (0.2, lambda: ["-p"]),
            (0.1, lambda: ["-q"]),
            (0.3, lambda: ["-u"]),
            (0.2, lambda: ["-U"]),
            (0.3, lambda: ["-t", cache(chance)]),
            (0.3, lambda: ["-T", cache(chance)]),
        ],
    )
    if chance.random() < 0.95:
        backing = shelf.pick(chance)
        while backing.name == image.name or image.name in [one.name for one in backing.chain]:
            backing = shelf.pick(chance)
        if chance.random() < 0.2:
            options.append(["-b", ""])
        else:
            options.append(["-b", backing.name])
            options += [["-F", backing.format]] if chance.random() < 0.9 else []
    return ["rebase", *_line(chance, options, name_of(chance, image))]


def bench(chance: Chance, shelf: Shelf) -> list[str]:
    image = shelf.pick(chance, plain=False)
    write = chance.random() < 0.5
    options = chosen(
        chance,
        [
            (0.3, lambda: ["-d", str(chance.choice([1, 2, 8, 64]))]),
            (0.3, lambda: ["-o", size(chance, chance.randrange(0, image.size + 1))]),
            (0.3, lambda: ["-s", size(chance, 512 * chance.randrange(1, 64))]),
            (0.3, lambda: ["-S", size(chance, 512 * chance.randrange(0, 64))]),
            (0.3, lambda: ["-t", cache(chance)]),
            (0.2, lambda: ["-i", chance.choice(["threads", "native", "io_uring"])]),
            (0.1, lambda: ["-n"]),
            (0.2, lambda: ["-U"]),
            (0.1, lambda: ["-q"]),
            (0.3, lambda: [f"--pattern={chance.randrange(0, 256)}"]),
            (0.3 if write else 0.02, lambda: [f"--flush-interval={chance.choice([1, 8, 64, 100])}"]),
            (0.1, lambda: ["--no-drain"]),
        ],
    )
    options += [["-w"]] if write else []
    options.append(["-c", str(chance.choice([0, 1, 10, 50]))])
    return ["bench", *_line(chance, options, name_of(chance, image))]


COMMANDS: dict[str, Callable[[Chance, Shelf], list[str]]] = {
    "amend": amend,
    "bench": bench,
    "bitmap": bitmap,
    "check": check,
    "commit": commit,
    "compare": compare,
    "convert": convert,
    "create": create,
    "dd": dd,
    "info": info,
    "map": map_,
    "measure": measure,
    "rebase": rebase,
    "resize": resize,
    "snapshot": snapshot,
}
"""What makes a command line of each subcommand."""

NAMES = tuple(COMMANDS)
