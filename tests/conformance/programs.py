"""What the suite calls: programs of the names that it expects, in a folder of their own."""

import shutil
from pathlib import Path

__all__ = ["MissingProgram", "environment", "make_programs"]

_OURS = {"qemu-img": "aioblock-img", "qemu-io": "aioblock-io", "qemu-nbd": "aioblock-nbd"}
_DAEMON = "qemu-storage-daemon"
_MACHINE = "qemu-system-x86_64"

# The suite asks every machine for its default type, also for tests that start none.
_NO_MACHINE = """\
#!/bin/sh
case "$*" in
    *-machine*help*) echo 'pc                   Standard PC (default)' ;;
    *) echo 'there is no machine here' >&2; exit 1 ;;
esac
"""
_NO_DAEMON = "#!/bin/sh\necho 'there is no storage daemon here' >&2\nexit 1\n"


class MissingProgram(Exception):
    """A program is not installed."""


def make_programs(folder: Path, ours: Path | None) -> None:
    """Fill `folder`: links to the programs in `ours` (None: to QEMU's own), and stand-ins for what is not there.

    Links, because messages begin with the name that a program was called by. Raises: MissingProgram.
    """
    for name, mine in _OURS.items():
        target = ours / mine if ours is not None else Path(shutil.which(name) or name)
        if not target.is_file():
            raise MissingProgram(f"{target} is not there: make install, or make oracles for QEMU's own")
        (folder / name).symlink_to(target.absolute())
    daemon = ours / "aioblock-storage-daemon" if ours is not None else Path(shutil.which(_DAEMON) or _DAEMON)
    if daemon.is_file():
        (folder / _DAEMON).symlink_to(daemon.absolute())
    else:
        _script(folder / _DAEMON, _NO_DAEMON)
    _script(folder / _MACHINE, _NO_MACHINE)


def _script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def environment(folder: Path, work: Path) -> dict[str, str]:
    """The variables that tell the suite of the programs in `folder`, and where a test may write."""
    return {
        "QEMU_PROG": str(folder / _MACHINE),
        "QEMU_IMG_PROG": str(folder / "qemu-img"),
        "QEMU_IO_PROG": str(folder / "qemu-io"),
        "QEMU_NBD_PROG": str(folder / "qemu-nbd"),
        "QSD_PROG": str(folder / _DAEMON),
        "TEST_DIR": str(work / "images"),
        "SOCK_DIR": str(work / "sockets"),
    }
