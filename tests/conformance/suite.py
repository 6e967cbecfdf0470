"""Where the suite lies: a cache folder, filled once from Debian's source package of QEMU."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

__all__ = ["FORMATS", "SuiteError", "cached_suite", "source_entries", "names_in"]

VERSION = "7.2"
RELEASE = "bookworm"
"""The release of Debian that has this version; its packages are found where the machine finds its own."""

FORMATS = ("qcow2", "raw", "luks", "nbd")
"""The formats that have a list of tests to pass."""


class SuiteError(Exception):
    """The suite could not be had. The message says what is missing."""


def cached_suite() -> Path:
    """The folder `tests/qemu-iotests` of the suite, after fetching it where it is not there yet. Raises: SuiteError."""
    home = os.environ.get("AIOBLOCK_CONFORMANCE_CACHE") or Path.home() / ".cache" / "aioblock-conformance"
    root = Path(home) / f"qemu-iotests-{VERSION}"
    suite = root / "tests" / "qemu-iotests"
    if not (suite / "check").exists():
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root.parent, prefix="fetching-") as work:
            unpacked = _fetch(Path(work))
            shutil.rmtree(root, ignore_errors=True)
            unpacked.rename(root)
    return suite


def names_in(suite: Path) -> list[str]:
    """The names of all tests: numbers, and files of `tests/`. Those for a format or a machine of their own too."""
    found = [file for folder in (suite, suite / "tests") for file in folder.iterdir() if _is_test(file)]
    return sorted(str(file.relative_to(suite)) for file in found)


def _is_test(file: Path) -> bool:
    named = file.parent.name == "tests" or file.name.isdigit()
    return named and file.is_file() and os.access(file, os.X_OK) and not file.suffix


# Fetching


def _fetch(work: Path) -> Path:
    """Download the source package with apt into `work`, and unpack what the suite needs. Raises: SuiteError."""
    for folder in ("lists/partial", "cache/archives/partial", "suite"):
        (work / folder).mkdir(parents=True)
    (work / "source.sources").write_text(source_entries(_source_files()))
    apt = ["apt-get", "-qq", "-o", f"Dir::Etc::sourcelist={work}/source.sources", "-o", "Dir::Etc::sourceparts=-"]
    apt += ["-o", f"Dir::State::Lists={work}/lists", "-o", f"Dir::Cache={work}/cache", "-o", "APT::Sandbox::User="]
    apt += ["-o", "Acquire::Retries=3"]
    _run([*apt, "update"], work)
    _run([*apt, "source", "--download-only", f"qemu/{RELEASE}"], work)
    tarballs = list(work.glob(f"qemu_{VERSION}*.orig.tar.*"))
    if len(tarballs) != 1:
        raise SuiteError(f"Debian's {RELEASE} has no source package of QEMU {VERSION} any more")
    parts = ["*/tests/qemu-iotests", "*/python"]
    _run(["tar", "-xf", tarballs[0].name, "--strip-components=1", "-C", "suite", "--wildcards", *parts], work)
    (work / "suite/tests/qemu-iotests/common.env").touch()  # what a build of QEMU would write there
    return work / "suite"


def _run(command: list[str], work: Path) -> None:
    try:
        subprocess.run(command, cwd=work, stdin=subprocess.DEVNULL, check=True, timeout=600)
    except (OSError, subprocess.SubprocessError) as error:
        raise SuiteError(
            f"the suite could not be fetched ({error}); it needs apt-get on Debian or Ubuntu, the network, tar and xz"
        ) from None


def _source_files() -> list[str]:
    etc = Path("/etc/apt")
    files = [etc / "sources.list", *(etc / "sources.list.d").glob("*")]
    return [file.read_text() for file in files if file.suffix in (".list", ".sources") and file.is_file()]


def source_entries(files: list[str]) -> str:
    """An entry for source packages of RELEASE at the mirror that the machine's own entries name. Raises: SuiteError.

    `files`: what is in apt's own files, of either form.
    """
    for text in files:
        for entry in _entries(text):
            if entry["uri"].rstrip("/").endswith("/debian"):
                signed = f"Signed-By: {entry['signed-by']}\n" if entry.get("signed-by") else ""
                return f"Types: deb-src\nURIs: {entry['uri']}\nSuites: {RELEASE}\nComponents: main\n{signed}"
    raise SuiteError("no Debian mirror is named in /etc/apt: the suite comes from Debian's source package of QEMU")


def _entries(text: str) -> list[dict[str, str]]:
    """Each source with its `uri`, and `signed-by` if it says that."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["deb"]:
            options = {}
            if words[1].startswith("["):
                end = next(number for number, word in enumerate(words) if word.endswith("]"))
                inside = " ".join(words[1 : end + 1]).strip("[] ").split()
                options = dict(option.partition("=")[::2] for option in inside)
                words[1 : end + 1] = []
            found.append({"uri": words[1], "signed-by": options.get("signed-by", "")})
    for stanza in text.split("\n\n"):
        lines = [line for line in stanza.splitlines() if not line.startswith("#")]
        fields = {
            key.strip().lower(): value.strip() for key, colon, value in (x.partition(":") for x in lines) if colon
        }
        if "deb" in fields.get("types", "").split():
            for uri in fields.get("uris", "").split():
                found.append({"uri": uri, "signed-by": fields.get("signed-by", "")})
    return found
