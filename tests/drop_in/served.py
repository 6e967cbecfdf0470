"""aioblock-img as a process that forks for each command line, so that a run does not pay for an interpreter's start.

python -m tests.drop_in.served: a JSON object a line comes in (argv, folder, out, err: files to write to), and the exit
status of the program goes out, or minus a signal's number.
"""

import importlib
import json
import os
import signal
import sys
import traceback
from typing import Any

MODULES = ("numpy", "uvloop", "asyncio", "logging", "zstandard", "aioblock.api", "aioblock.jobs")


def main() -> None:
    from aioblock.tools import img

    for name in MODULES:
        importlib.import_module(name)
    for name in img.COMMANDS:
        importlib.import_module(f"aioblock.tools.img.{name}")
    for line in sys.stdin:
        status = _forked(json.loads(line))
        print(status, flush=True)


def _forked(job: dict[str, Any]) -> int:
    child = os.fork()
    if not child:
        try:
            _become(job)
        finally:
            os._exit(70)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _become(job: dict[str, Any]) -> None:
    from aioblock.tools.img import main as program

    signal.alarm(job["seconds"])
    os.chdir(job["folder"])
    for number, path in ((0, os.devnull), (1, job["out"]), (2, job["err"])):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(fd, number)
        os.close(fd)
    sys.argv = ["qemu-img", *job["argv"]]
    sys.stdout, sys.stderr = (os.fdopen(fd, "w", closefd=False) for fd in (1, 2))
    try:
        status = program()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        status = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
