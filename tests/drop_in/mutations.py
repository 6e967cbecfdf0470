"""Command lines made wrong: a word lost, doubled, misspelt or replaced by one that cannot be right."""

from tests.drop_in.words import Chance

__all__ = ["mutated"]

_NUMBERS = (
    "-1", "0", "1", "x", "", " 5", "1.5", "1.5k", "1kk", "0x", "0x10", "1e3", "99999999999999999999", "8E", "16E", "7E",
    "9223372036854775807", "9223372036854775808", "18446744073709551615", "18446744073709551616", "1Z", "k", "513",
    "+5", "nan", "inf", "1 k", "010", "08",
)  # fmt: skip
_NAMES = (
    "missing", "", ".", "sub", "no/such/folder", "base.raw/x", "x" * 300, "json:", "json:{", 'json:{"driver":"qcow2"}',
    'json:{"driver":"file"}', 'json:{"driver":"nonsense","filename":"x"}', "json:[]", "json:{'driver':'raw'}",
    'json:{"driver":"raw","file":"disk.raw"}', "json:5", 'json:{"driver":"raw","file.filename":"disk.raw","x":"y"}',
    "nonsense:x", "driver=raw", "driver=qcow2,file.filename=disk.raw", "garbage", "short", "file:",
    "driver=raw,file.filename=disk.raw,offset=512,size=1k", "driver=raw,file.driver=null-co", "closed",
)  # fmt: skip
_FORMATS = ("nonsense", "", "raw", "qcow2", "luks", "file", "null-co", "RAW")
_OPTIONS = (
    "-z", "--nonsense", "--output", "--output=xml", "--output=json", "--image-opts", "--", "-", "-f", "-o", "-O", "-q",
    "-qp", "-Uq", "--object", "--object=secret", "--object=nonsense,id=x", "--object=secret,id=s0,data=x", "-p", "-U",
    "--obj=secret,id=a,data=b", "--force-share", "-fraw", "-fqcow2", "-t", "--object=secret,id=0x,data=y",
)  # fmt: skip
_LISTS = (
    "size=1x", "nonsense=1", "cluster_size=100", "cluster_size=4M", "cluster_size=0", "compat=2", "compat=", "=1",
    "size", "lazy_refcounts=maybe", "refcount_bits=3", "refcount_bits=x", "preallocation=some", ",", "a,,b=c", "size=,",
    "compression_type=lzma", "encryption=on", "encrypt.format=luks", "data_file_raw=on", "extended_l2=on",
    "lazy_refcounts", "nolazy_refcounts", "backing_file=missing", "?", "size=1M,size=2M", "nocow=1",
    "refcount_bits=64,compat=0.10", "lazy_refcounts=on,compat=0.10", "data_file=x,compat=0.10", "cluster_size=512k",
    "extended_l2=on,cluster_size=4k", "backing_fmt=qcow2", "backing_fmt=nonsense", "size=9E", "preallocation=full",
    "compression_type=zstd,compat=0.10", "extent_size_hint=x",
)  # fmt: skip


def mutated(chance: Chance, argv: list[str]) -> list[str]:
    """The command line with one or two faults."""
    for _ in range(chance.choice([1, 1, 1, 2])):
        argv = _once(chance, list(argv))
    return argv


def _once(chance: Chance, argv: list[str]) -> list[str]:
    at = chance.randrange(1, len(argv)) if len(argv) > 1 else 0
    kind = chance.choice(["drop", "number", "name", "option", "double", "value", "swap", "end"])
    if kind == "drop" and at:
        del argv[at]
    elif kind == "option":
        argv.insert(max(at, 1), chance.choice(_OPTIONS))
    elif kind == "double" and at:
        argv.insert(at, argv[at])
    elif kind == "swap" and at:
        other = chance.randrange(1, len(argv))
        argv[at], argv[other] = argv[other], argv[at]
    elif kind == "end":
        argv.append(chance.choice([*_NAMES, *_NUMBERS]))
    elif at:
        _replace(chance, argv, kind)
    return argv


def _replace(chance: Chance, argv: list[str], kind: str) -> None:
    """Another value where there is one, according to what stands there."""
    places = range(1, len(argv))
    if kind == "name":
        found = [at for at in places if not argv[at].startswith("-") and argv[at - 1] not in ("-o", "-f", "-O", "-F")]
        values = _NAMES
    elif kind == "number":
        found = [at for at in places if argv[at][:1].isdigit() or "=" in argv[at]]
        values = _NUMBERS
    else:
        found = [at for at in places if argv[at - 1] in ("-f", "-O", "-F", "-o", "-t", "-T", "-l", "-r", "-S", "-m")]
        values = _FORMATS
    if not found:
        argv.append(chance.choice(values))
        return
    at = chance.choice(found)
    if argv[at - 1] == "-o" and kind == "value":
        values = _LISTS
    value = chance.choice(values)
    name, equals, _ = argv[at].partition("=")
    keeps_name = equals and (argv[at].startswith("--") or name in ("bs", "count", "skip", "if", "of"))
    argv[at] = f"{name}={value}" if keeps_name else value
