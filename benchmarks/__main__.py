"""Run the benchmarks: all of them, or those named."""

import compileall
import importlib
import os
import pkgutil
import sys
from pathlib import Path

import aioblock
import benchmarks

PREFIX = "bench_"


def main() -> int:
    found = sorted(m.name.removeprefix(PREFIX) for m in pkgutil.iter_modules(benchmarks.__path__) if PREFIX in m.name)
    wanted = sys.argv[1:] or found
    if unknown := [name for name in wanted if name not in found]:
        print(f"no such benchmark: {', '.join(unknown)}; there are: {', '.join(found)}", file=sys.stderr)
        return 2
    # As an installed package starts: with its modules compiled.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    compileall.compile_dir(str(Path(aioblock.__file__).parent), quiet=1)
    for name in wanted:
        module = importlib.import_module(f"benchmarks.{PREFIX}{name}")
        print(f"\n== {name}: {(module.__doc__ or '').splitlines()[0]}")
        module.main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
